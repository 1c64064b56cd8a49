"""Check what works on this machine, why something does not, and how to repair it.

    python -m splatexp.doctor [--json] [lpips_weights=<folder>] [seconds=60]

checks Python and its packages, kernels, compilers, the GPU, trackers, memory
and disk, and trains the built-in scene for three steps. Whatever may crash or
hang is tried in a process of its own, with a limit of `seconds`. Nothing is
downloaded or sent.

    --json                    print the results as a list of objects: name,
                              status, required (for training), detail, reason,
                              remedy; status is ok, missing or broken
    lpips_weights=<folder>    the folder in which the weights of LPIPS are
                              looked for, instead of torch's cache

Exit status: 0 if a run can train here, 1 if not, 2 for an unknown argument.
"""
