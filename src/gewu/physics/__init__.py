"""The solvers. No room here imports another, except that `seismic` and `ocean` will stand on `fields`."""
