# The CPU kernels, on addresses of dense, row-major buffers (tensor.data_ptr()). dtype is 0 for
# float32 and 1 for float64. help(lipvae._C.l1_ball_forward) and so on say what each one writes.

__version__: str
compiler: str
threading: str
importance_state: int

class Record:
    listed: bool

def l1_ball_threshold(
    weight: int,
    rows: int,
    cols: int,
    radius: float,
    warm: int,
    threshold: int,
    dtype: int,
    threads: int,
) -> None: ...
def l1_ball_forward(
    weight: int,
    rows: int,
    cols: int,
    radius: float,
    warm: int,
    out: int,
    threshold: int,
    dtype: int,
    threads: int,
) -> None: ...
def l1_ball_backward(
    grad: int,
    weight: int,
    threshold: int,
    grad_weight: int,
    rows: int,
    cols: int,
    dtype: int,
    threads: int,
) -> None: ...
def group_sort_forward(
    x: int,
    y: int,
    code: int,
    outer: int,
    n: int,
    inner: int,
    group_size: int,
    dtype: int,
    threads: int,
) -> None: ...
def group_sort_backward(
    grad_y: int,
    code: int,
    grad_x: int,
    outer: int,
    n: int,
    inner: int,
    group_size: int,
    dtype: int,
    threads: int,
) -> None: ...
def importance_forward(
    parameters: int,
    target: int,
    out: int,
    K: int,
    B: int,
    D: int,
    family: int,
    dtype: int,
    threads: int,
) -> None: ...
def importance_backward(
    grad_out: int,
    parameters: int,
    target: int,
    grad_parameters: int,
    K: int,
    B: int,
    D: int,
    family: int,
    dtype: int,
    threads: int,
) -> None: ...
def panel_width(dtype: int) -> int: ...
def linear_pack(
    weight: int,
    bias: int,
    panels: int,
    planes: int,
    D: int,
    plane_stride: int,
    H: int,
    width: int,
    dtype: int,
    threads: int,
) -> None: ...
def linear_forward(
    x: int,
    panels: int,
    out: int,
    rows: int,
    D: int,
    H: int,
    width: int,
    together: int,
    relu: bool,
    group_size: int,
    dtype: int,
    threads: int,
) -> None: ...
def lipschitz_linear_forward(
    x: int,
    weight: int,
    bias: int,
    radius: float,
    warm: int,
    y: int,
    threshold: int,
    panels: int,
    code: int,
    recording: bool,
    rows: int,
    D: int,
    H: int,
    width: int,
    group_size: int,
    dtype: int,
    threads: int,
) -> Record | None: ...
def lipschitz_linear_backward(
    grad: int,
    record: Record | None,
    code: int,
    x: int,
    weight: int,
    threshold: int,
    grad_x: int,
    grad_weight: int,
    grad_bias: int,
    rows: int,
    D: int,
    H: int,
    group_size: int,
    dtype: int,
    threads: int,
) -> None: ...
def conv_transpose_forward(
    x: int,
    panels: int,
    bias: int,
    out: int,
    batch: int,
    input: tuple[int, int, int],
    to: tuple[int, int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    width: int,
    relu: bool,
    dtype: int,
    threads: int,
) -> None: ...
def importance_linear_forward(
    hidden: int,
    panels: int,
    target: int,
    total: int,
    K: int,
    B: int,
    D: int,
    H: int,
    width: int,
    images_first: bool,
    family: int,
    dtype: int,
    threads: int,
) -> None: ...
def normal_samples(
    loc: int,
    log_variance: int,
    noise: int,
    z: int,
    log_ratio: int,
    B: int,
    K: int,
    m: int,
    dtype: int,
    threads: int,
) -> None: ...
def importance_statistics(
    log_likelihood: int,
    log_ratio: int,
    state: int,
    statistics: int,
    B: int,
    K: int,
    before: int,
    dtype: int,
    threads: int,
) -> None: ...
def vmf_sample(
    loc: int,
    concentration: int,
    out: int,
    t: int,
    samples: int,
    rows: int,
    dim: int,
    seed: int,
    start: int,
    shared: bool,
    dtype: int,
    threads: int,
) -> None: ...
def vmf_angle(
    t: int,
    concentration: int,
    complement: int,
    node: int,
    weight: int,
    out: int,
    samples: int,
    rows: int,
    dim: int,
    nodes: int,
    threads: int,
) -> None: ...
def isa() -> str: ...
def available_isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def max_threads() -> int: ...
