"""Raw C-level and layer-level timings. usage: python layer_ab.py"""
import time, torch, sys, statistics, itertools
torch.set_num_threads(1)
from lipvae.nn import LipschitzLinear
import lipvae
from torch import nn
sys.path.insert(0,'.')
from bench.bench_lipschitz_linear import steps_apart
from bench.bench_l1_ball import rows
from bench.settings import Settings
from bench.peers.lipschitz_linear import ReluLayer
import random
S=Settings()
batches=[int(b) for b in (sys.argv[1] if len(sys.argv)>1 else "128").split(",")]
rounds=int(sys.argv[2]) if len(sys.argv)>2 else 120
for shape in [(784,512),(512,512),(1024,1024)]:
  for batch in batches:
    w=rows("initial",(shape[1],shape[0]),S); b=.1*S.randn(shape[1],seed=4)
    x=S.rand(batch,shape[0],seed=5).requires_grad_()
    ours=steps_apart(w,b); floors=[ReluLayer(*shape) for _ in range(2)]
    io,fl=itertools.cycle(ours),itertools.cycle(floors)
    out=torch.empty(batch,shape[1]); wt=w.t(); xd=x.detach()
    runs={"floor":lambda: next(fl)(x),"ours":lambda: next(io)(x),"gemm":lambda: torch.mm(xd,wt,out=out)}
    try:
        from lipvae.ops.packed_lipschitz import cpp_forward, PackedLipschitzLinear
        from lipvae.ops.panels import pack
        pk=PackedLipschitzLinear(w,b,1.0,2)
        runs["packed"]=lambda: pk(xd)
        wd=[l.weight.detach() for l in ours]; it=itertools.cycle(wd); state=[None]
        def cc(keep):
            def f():
                r=cpp_forward(xd,next(it),b,1.0,2,state[0],record=True,project=keep); state[0]=r[1]
            return f
        runs["cpp keep"]=cc(True); runs["cpp drop"]=cc(False)
        x1=xd[:0]
        def pp():
            r=cpp_forward(x1,next(it),b,1.0,2,state[0],record=True,project=True); state[0]=r[1]
        runs["cpp 0 rows"]=pp
        runs["pack"]=lambda: pack(w,b)
    except ImportError: pass
    t={k:[] for k in runs}
    names=list(runs)
    for r in range(rounds):
        random.shuffle(names)
        for k in names:
            f=runs[k]; f()
            n=1 if batch>=128 else 5
            a=time.perf_counter_ns()
            for _ in range(n): f()
            t[k].append((time.perf_counter_ns()-a)/1e3/n)
    print(shape,batch,{k:(round(statistics.median(v)),round(statistics.median(p/q for p,q in zip(v,t["floor"])),3)) for k,v in t.items()},flush=True)
