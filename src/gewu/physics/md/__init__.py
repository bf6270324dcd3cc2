r"""Molecular dynamics: Newton's equations for many atoms, with forces from a potential, sampled in a chosen ensemble.

What it solves: m_i d2x_i/dt2 = -dU/dx_i + (thermostat, barostat, rigid bonds), and what follows from the trajectory: temperature,
pressure, structure, transport.

    U = sum of terms: Lennard-Jones and Coulomb pairs, smooth PME, bonded terms, embedded atoms, three-body potentials, or any
        callable `energy, forces = potential(state)`

Symbols: x position, v velocity, f force, m mass, q charge, h box (rows a, b, c), W virial, P pressure, V volume, kT, tau time
constants, rc cutoff.  Units: nm, ps, u, kJ/mol, e, K (`units`).

Order to read in:
    units, state      what moves, what it is made of, what a term is;  box: periodic images
    config, engine    the job and the run;  prepare: from files to a system;  sampling, trajectory, figures: what comes out
    model             forces of everything: stale lists, ghosts, terms
    pairs, cells      the pair kernel on `core.simd` tiles, and its cluster list;  plain: the GPU's twin
    pme, bspline, ewald            charges in reciprocal space
    bonded, constraints, virtual   molecules
    eam, eamlanes, manybody, verlet        metals and covalent crystals, and their list
    integrate, kinetics, barostat, minimise   motion
    domain, localise  one system on many ranks
    observables       what is averaged
    ase, potential    doors to other programs

Force fields become a `Topology` in `gewu.formats.forcefield`; inner loops are made of the vectors of `gewu.core`: `simd`,
`lanes`, `mesh`, and of the polynomials of `erfc`.

As a library:
    >>> from gewu.formats.forcefield import lennard_jones
    >>> argon = lennard_jones(["Ar"] * 4, {"Ar": (0.996, 0.3405)})
    >>> len(argon)
    4
"""
