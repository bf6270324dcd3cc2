"""The `[md]` table of a job: every key with its default, unit, bounds and meaning."""

from __future__ import annotations

from dataclasses import dataclass

from gewu.core.errors import InputError
from gewu.core.schema import field

FORCE_FIELDS = ("topology", "water", "lennard_jones", "eam", "tersoff", "stillinger_weber")


@dataclass(frozen=True)
class Config:
    """The `[md]` table of a job."""

    structure: str = field(
        "", file=True, builtin_prefixes=(), meaning="Coordinates: extxyz, CIF, POSCAR, PDB, mmCIF, gro, inpcrd, rst7, ncrst"
    )
    repeat: tuple[int, int, int] = field((1, 1, 1), minimum=1, meaning="Repeat the cell of a structure without bonds")
    topology: str = field("", file=True, meaning="Force field: AMBER prmtop, GROMACS top, LAMMPS data")
    lammps_units: str = field("real", choices=("real", "metal"), meaning="Units of a LAMMPS data file", expert=True)
    water: str = field("", choices=("", "spce", "tip3p", "tip4pew"), meaning="Rigid water: a box of it, or around the solute")
    molecules: int = field(0, minimum=0, maximum=3_000_000, meaning="Molecules of a water box made from scratch")
    solvate_nm: float = field(
        0.0, unit="nm", minimum=0.0, maximum=10.0, meaning="Put the solute into a box of water, this far to its sides"
    )
    lennard_jones: str | dict[str, str] = field(
        "", meaning="Own force field by element: 'epsilon_kj_mol sigma_nm', for example {Ar = '0.996 0.3405'}"
    )
    charges: str | dict[str, str] = field("", meaning="Charges by element in e, with lennard_jones")
    mixing: str = field(
        "lorentz-berthelot", choices=("lorentz-berthelot", "geometric"), meaning="Lennard-Jones parameters of unlike pairs"
    )
    eam: str = field(
        "", file=True, builtin_prefixes=("zhou",), meaning="Embedded atoms: zhou, or a setfl, Finnis-Sinclair or funcfl file"
    )
    tersoff: str = field("", file=True, meaning="Parameter file of a Tersoff potential")
    stillinger_weber: str = field("", file=True, meaning="Parameter file of a Stillinger-Weber potential")

    cutoff_nm: float = field(1.0, unit="nm", exclusive_minimum=0.0, maximum=20.0, meaning="Cutoff of pair interactions")
    skin_nm: float = field(
        0.0, unit="nm", minimum=0.0, maximum=2.0, meaning="How far neighbour lists reach beyond; 0 chooses", expert=True
    )
    lj: str = field("cut", choices=("cut", "shift", "force-shift"), meaning="Lennard-Jones at the cutoff")
    coulomb: str = field(
        "auto",
        choices=("auto", "none", "cut", "reaction-field", "ewald"),
        meaning="Charges: auto is smooth PME where there are any",
    )
    epsilon_rf: float = field(0.0, minimum=0.0, meaning="Dielectric constant of the reaction field; 0 is infinite", expert=True)
    ewald_tolerance: float = field(1e-5, minimum=1e-12, maximum=1e-2, meaning="erfc(alpha cutoff) of the Ewald sum", expert=True)
    pme_order: int = field(4, choices=(4, 5, 6), meaning="Order of the splines of PME", expert=True)
    pme_spacing_nm: float = field(0.12, unit="nm", minimum=0.01, maximum=0.3, meaning="Mesh of PME", expert=True)
    dispersion_correction: bool = field(True, meaning="Add the mean dispersion beyond the cutoff to energy and pressure")
    constraints: str = field(
        "hydrogen bonds",
        choices=("none", "hydrogen bonds", "all bonds"),
        meaning="Rigid bonds of a topology; water is rigid unless none",
    )
    constraint_tolerance: float = field(1e-10, minimum=1e-14, maximum=1e-3, meaning="Relative error of rigid bonds", expert=True)
    precision: str = field(
        "mixed", choices=("mixed", "double"), meaning="Arithmetic of pairs: float32 with float64 sums, or float64"
    )

    ensemble: str = field("nvt", choices=("nve", "nvt", "npt", "minimise"), meaning="What is kept constant")
    thermostat: str = field(
        "velocity-rescaling", choices=("velocity-rescaling", "langevin", "nose-hoover"), meaning="How the temperature is kept"
    )
    barostat: str = field(
        "cell-rescaling", choices=("cell-rescaling", "mtk"), meaning="How the pressure is kept; mtk brings its own thermostat"
    )
    coupling: str = field(
        "isotropic", choices=("isotropic", "semi", "anisotropic"), meaning="Which sides of the box stretch alike"
    )
    temperature_k: float = field(300.0, unit="K", minimum=0.0, maximum=1e6, meaning="Temperature")
    temperature_end_k: float = field(0.0, unit="K", minimum=0.0, maximum=1e6, meaning="Heat or cool linearly to this; 0 stays")
    pressure_bar: float = field(1.0, unit="bar", minimum=-1e7, maximum=1e8, meaning="Pressure")
    friction_per_ps: float = field(
        1.0, unit="1/ps", exclusive_minimum=0.0, maximum=1e4, meaning="Friction of the Langevin thermostat"
    )
    thermostat_ps: float = field(0.5, unit="ps", exclusive_minimum=0.0, maximum=1e4, meaning="Time constant of the thermostat")
    barostat_ps: float = field(2.0, unit="ps", exclusive_minimum=0.0, maximum=1e5, meaning="Time constant of the barostat")
    compressibility_per_bar: float = field(
        4.5e-5, unit="1/bar", exclusive_minimum=0.0, maximum=1.0, meaning="Compressibility assumed by cell-rescaling", expert=True
    )
    minimise: int = field(0, minimum=0, maximum=1_000_000, meaning="Steps of minimisation (FIRE) before the dynamics")
    max_force_kj_mol_nm: float = field(
        100.0, unit="kJ/mol/nm", exclusive_minimum=0.0, meaning="Force at which minimisation ends", expert=True
    )

    timestep_fs: float = field(2.0, unit="fs", exclusive_minimum=0.0, maximum=1e3, meaning="Time step")
    equilibration_ps: float = field(0.0, unit="ps", minimum=0.0, maximum=1e9, meaning="Time before anything is averaged")
    time_ps: float = field(10.0, unit="ps", minimum=0.0, maximum=1e9, meaning="Time that is averaged")
    sample_ps: float = field(0.0, unit="ps", minimum=0.0, maximum=1e6, meaning="Time between samples; 0 takes about 500 in all")
    trajectory: str = field("none", choices=("none", "dcd", "h5md", "extxyz"), meaning="Format of the trajectory")
    frame_ps: float = field(0.0, unit="ps", minimum=0.0, maximum=1e6, meaning="Time between frames; 0 takes about 100 in all")
    rdf_nm: float = field(
        0.0, unit="nm", minimum=0.0, maximum=20.0, meaning="Reach of the radial distribution; 0 takes the cutoff"
    )
    seed: int = field(1, minimum=0, meaning="Seed of velocities and noise")

    def check(self) -> None:
        """Refuse no or several force fields, and ramps that no thermostat follows."""
        given = [key for key in FORCE_FIELDS if getattr(self, key)]
        if self.water and "topology" in given and self.solvate_nm:
            given.remove("water")
        if len(given) != 1:
            message = "choose one force field" if given else "no force field is given"
            raise InputError(message, key=" ".join(given) or "topology", allowed="one of " + ", ".join(FORCE_FIELDS))
        if not (self.structure or self.topology or (self.water and self.molecules)):
            raise InputError("no coordinates are given", key="structure", hint="name a file, or molecules for a box of water")
        if self.temperature_end_k and (
            self.ensemble not in ("nvt", "npt") or self.barostat == "mtk" or self.thermostat == "nose-hoover"
        ):
            allowed = "nvt or npt with velocity-rescaling or langevin"
            raise InputError("nothing follows a temperature ramp here", key="temperature_end_k", allowed=allowed)
        if self.charges and not self.lennard_jones:
            raise InputError("charges by element need lennard_jones", key="charges")
