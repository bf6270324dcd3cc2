"""The chemical elements: symbols, standard atomic masses, covalent radii.

Masses: IUPAC 2021 standard atomic weights, abridged to the conventional values (Prohaska et al., Pure Appl. Chem. 94, 573
(2022)); elements without stable isotopes carry the mass number of a long-lived isotope. Covalent radii in angstrom: Cordero et
al., Dalton Trans. 2832 (2008), low spin where it gives two; 1.5 where it gives none.
"""

from __future__ import annotations

from collections.abc import Collection

_SYMBOLS = """H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
    Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu
    Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr
    Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"""
SYMBOLS: tuple[str, ...] = tuple(_SYMBOLS.split())

ATOMIC_NUMBER: dict[str, int] = {symbol: z for z, symbol in enumerate(SYMBOLS, start=1)}

_MASSES = """1.008 4.0026 6.94 9.0122 10.81 12.011 14.007 15.999 18.998 20.180 22.990 24.305 26.982 28.085 30.974 32.06
    35.45 39.95 39.098 40.078 44.956 47.867 50.942 51.996 54.938 55.845 58.933 58.693 63.546 65.38 69.723 72.630
    74.922 78.971 79.904 83.798 85.468 87.62 88.906 91.224 92.906 95.95 97 101.07 102.91 106.42 107.87 112.41
    114.82 118.71 121.76 127.60 126.90 131.29 132.91 137.33 138.91 140.12 140.91 144.24 145 150.36 151.96 157.25
    158.93 162.50 164.93 167.26 168.93 173.05 174.97 178.49 180.95 183.84 186.21 190.23 192.22 195.08 196.97
    200.59 204.38 207.2 208.98 209 210 222 223 226 227 232.04 231.04 238.03 237 244 243 247 247 251 252 257 258
    259 262 267 268 269 270 269 277 281 282 285 286 290 290 293 294 294"""
MASS_U: dict[str, float] = dict(zip(SYMBOLS, map(float, _MASSES.split()), strict=True))

_RADII = """0.31 0.28 1.28 0.96 0.84 0.76 0.71 0.66 0.57 0.58 1.66 1.41 1.21 1.11 1.07 1.05 1.02 1.06 2.03 1.76 1.70 1.60
    1.53 1.39 1.39 1.32 1.26 1.24 1.32 1.22 1.22 1.20 1.19 1.20 1.20 1.16 2.20 1.95 1.90 1.75 1.64 1.54 1.47 1.46
    1.42 1.39 1.45 1.44 1.42 1.39 1.39 1.38 1.39 1.40 2.44 2.15 2.07 2.04 2.03 2.01 1.99 1.98 1.98 1.96 1.94 1.92
    1.92 1.89 1.90 1.87 1.87 1.75 1.70 1.62 1.51 1.44 1.41 1.36 1.36 1.32 1.45 1.46 1.48 1.40 1.50 1.50 2.60 2.21
    2.15 2.06 2.00 1.96 1.90 1.87 1.80 1.69"""
COVALENT_RADIUS_ANGSTROM: dict[str, float] = dict.fromkeys(SYMBOLS, 1.5) | dict(
    zip(SYMBOLS, map(float, _RADII.split()), strict=False)
)


def symbol_of(label: str, known: Collection[str] = ()) -> str | None:
    """Return the element that a site label such as "Si1", "O2A" or "FE" starts with, or None.

    Args:
        label: letters of the element first.
        known: elements of the formula; where one and two letters both spell an element, it decides. Without it a lower-case
            second letter belongs to the symbol, and an upper-case one ("CO1": cobalt, or carbon?) is ambiguous: None.
    """
    head = "".join(c for c in label[:2] if c.isascii() and c.isalpha())
    found = [word for word in (head[:2].capitalize(), head[:1].upper()) if word in ATOMIC_NUMBER]
    found = [word for word in dict.fromkeys(found) if not known or word in known]
    if len(found) == 2 and not head[1].islower():
        return None
    return found[0] if found else None
