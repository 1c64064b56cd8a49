"""What works on this machine, why something does not, and the remedy.

    python -m splatexp.doctor [--json] [lpips_weights=<folder>] [seconds=60]

looks at Python and its packages, kernels, compilers, the GPU, trackers, memory
and disk, and trains the built-in scene for three steps. What may crash or hang
is tried in a process of its own, which gets that many seconds. Nothing is
downloaded or sent.

    --json                    the rows as a list: name, state, needed, detail,
                              reason, remedy; needed: to train
    lpips_weights=<folder>    where the backbones of LPIPS are looked for, not
                              in torch's cache

Exit status: 0 if a run can train here, 1 if not, 2 for a word that is unknown.
"""
