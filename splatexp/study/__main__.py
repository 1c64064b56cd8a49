"""Run a study and write its report.

    python -m splatexp.study study=error_driven scenes=[photos/fox,photos/bonsai] seeds=3 steps=3000

Runs what is missing of variants x scenes x seeds (conf/study/NAME.yaml, or a file of your own:
study=mine.yaml) and writes report.html, report.md, report.tex and results.csv. A run that another study or
sweep has done is not run again; an interrupted study goes on where it stopped.

  folder=<folder>           where it lands; multirun/studies/NAME
  scenes=[..] seeds=K steps=N budget.gaussians=N budget.seconds=S budget.bytes=B metrics=[psnr,ssim]
  common=[..]               overrides of every run
  only=[..]                 some of the variants, besides the baseline
  jobs=N                    so many runs at once, which share the processors
  force=true                run again what is there
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from splatexp.study.runner import Order, check, conduct


def main() -> int:
    """The command.  Returns: the exit status; 1 where a run failed, 2 for input that is refused."""
    words = sys.argv[1:]
    if not words or {"-h", "--help", "help"} & set(words):
        print((__doc__ or "").strip())
        return 0 if words else 2
    from splatexp.config.build import conf_dir, merged

    try:
        names = [word.partition("=")[2] for word in words if word.startswith("study=")]
        ready = sorted(path.stem for path in (conf_dir() / "study").glob("*.yaml"))
        name = names[-1] if names else ""
        path = Path(name) if name.endswith((".yaml", ".yml")) else conf_dir() / "study" / f"{name}.yaml"
        if not path.is_file():
            raise ValueError(f"study: expected one of {', '.join(ready)} or a file, got {name!r}")
        order: Order = merged(Order, path, words)
        order = replace(order, folder=order.folder or str(Path("multirun", "studies", path.stem)))
        if unknown := [name for name in order.only if name not in order.variants]:
            raise ValueError(f"only: expected variants ({', '.join(order.variants)}), got {unknown[0]!r}")
        check(order)
        pages, failed = conduct(order, " ".join(["python -m splatexp.study", *words]))
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"{stop or 'stopped'}; the same command goes on", file=sys.stderr)
        return getattr(stop, "code", 130)
    for page in pages:
        print(page)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
