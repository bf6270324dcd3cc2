"""Make src/gewu/formats/data/gth.txt, the table of GTH pseudopotentials that comes with gewu.

    python tools/make_gth_table.py SOURCE [SOURCE ...] > src/gewu/formats/data/gth.txt

A SOURCE is a potential file in CP2K's text format. The entries of PBE and LDA ("PADE") from H to Rn are kept, numbers only; an
entry with an alias is the recommended one of its element and keeps one alias as the mark of it. The table in the repository was
made from pyscf/pbc/gto/pseudo/gth-pade.dat and gth-pbe.dat of PySCF (Apache-2.0) at the commit its header names.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gewu.formats.gth import parse_gth
from gewu.formats.pseudopotential import GthPseudo

HEADER = """# Parameters of Goedecker-Teter-Hutter pseudopotentials, H to Rn, functionals PBE and LDA (PADE), hartree and bohr.
# Published in: Goedecker, Teter, Hutter, Phys. Rev. B 54, 1703 (1996); Hartwigsen, Goedecker, Hutter, Phys. Rev. B 58, 3641
# (1998); Krack, Theor. Chem. Acc. 114, 145 (2005). Numbers as in gth-pade.dat and gth-pbe.dat of PySCF (Apache-2.0), commit
# 94d4dc83a5dd6e64c48c553991b33a9c5ae7b522. Made by tools/make_gth_table.py.
# An entry: element, name, alias when it is the recommended one; electrons of s p d f; r_loc, number of c, c_1 ..; number of
# angular momenta; for each its r_l, number of projectors, upper triangle of h_ij.
"""
KEPT = {"pbe": "GTH-PBE", "lda": "GTH-PADE"}


def entry_text(pseudo: GthPseudo, electrons: str, *, default: bool) -> str:
    """Return the three lines of one entry."""
    numbers = [f"{pseudo.r_loc:.8f}", str(len(pseudo.c_loc)), *(f"{c:.8f}" for c in pseudo.c_loc)]
    by_l = {channel.l: channel for channel in pseudo.channels}
    numbers.append(str(max(by_l, default=-1) + 1))
    for angular in range(max(by_l, default=-1) + 1):
        channel = by_l.get(angular)
        if channel is None:
            numbers += ["1.0", "0"]
            continue
        p = len(channel.h_ij)
        upper = [f"{channel.h_ij[i, j]:.8f}" for i in range(p) for j in range(i, p)]
        numbers += [f"{channel.r_l:.8f}", str(p), *upper]
    alias = f" {KEPT[pseudo.functional]}" if default else ""
    return f"{pseudo.element} {pseudo.name}{alias}\n{electrons}\n{' '.join(numbers)}\n"


def main(sources: list[str]) -> None:
    """Write the table made from `sources` to standard output."""
    sys.stdout.write(HEADER)
    for source in sources:
        text = Path(source).read_text(encoding="utf-8")
        rows = [row.partition("#")[0].split() for row in text.splitlines()]
        rows = [row for row in rows if row]
        electrons = {(row[0], row[1]): " ".join(rows[i + 1]) for i, row in enumerate(rows) if row[0].isalpha()}
        for pseudo, names in parse_gth(text, source=source):
            if pseudo.functional in KEPT:
                default = KEPT[pseudo.functional] in names
                sys.stdout.write(entry_text(pseudo, electrons[pseudo.element, pseudo.name], default=default))


if __name__ == "__main__":
    main(sys.argv[1:])
