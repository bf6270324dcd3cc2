"""Molecular dynamics against GROMACS, LAMMPS and OpenMM: the same start, cutoff, list policy and time step, rates in steps/s."""
