"""Other packages' interfaces, so that scripts written for them run on this one."""
