"""The names under which pseudopotential files state their exchange-correlation functional.

UPF spells it as Quantum ESPRESSO does (exchange, correlation, gradient exchange, gradient correlation), psp8 as ABINIT's
`ixc` (negative: two libxc numbers of three digits each). Names that are none of gewu's own are kept as they stand.
"""

from __future__ import annotations

_NAMES = {
    "PBE": "pbe",
    "SLA PW PBX PBC": "pbe",
    "SLA PW PBE PBE": "pbe",
    "PBESOL": "pbesol",
    "SLA PW PSX PSC": "pbesol",
    "LDA": "lda",
    "PZ": "lda",
    "PW": "lda",
    "PADE": "lda",
    "SLA PZ NOGX NOGC": "lda",
    "SLA PW NOGX NOGC": "lda",
    "SLA PW": "lda",
    "SLA PZ": "lda",
}
_IXC = {1: "lda", 2: "lda", 7: "lda", 11: "pbe", -1012: "lda", -1009: "lda", -1007: "lda", -101130: "pbe", -116133: "pbesol"}


def functional_of_name(text: str) -> str:
    """Return "pbe", "lda" or "pbesol" for the spellings in use, else the text itself in lower case."""
    words = " ".join(text.replace("+", " ").replace("-", " ").upper().split())
    return _NAMES.get(words, words.lower())


def functional_of_ixc(ixc: int) -> str:
    """Return the functional of ABINIT's `ixc` number, "ixc=<number>" when it is none of gewu's own."""
    return _IXC.get(ixc, f"ixc={ixc}")
