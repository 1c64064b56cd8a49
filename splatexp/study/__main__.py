"""Run a study and write its report.

    python -m splatexp.study study=error_driven scenes=[photos/fox,photos/bonsai] seeds=3 steps=3000

runs the missing ones of variants x scenes x seeds of conf/study/NAME.yaml, or of a file of your own
(study=mine.yaml), and writes report.html, report.md, report.tex and results.csv. A run that another study or
sweep has finished is not run again; an interrupted study continues where it stopped.

  folder=<folder>             output folder; multirun/studies/NAME by default
  scenes=[..] seeds=K steps=N budget.gaussians=N budget.seconds=S budget.bytes=B metrics=[psnr,ssim]
  common_overrides=[..]       overrides of every run
  only=[..]                   variants to be run, besides the baseline
  jobs=N                      number of runs at once, which share the processors
  force=true                  run again what is finished
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from splatexp.settings.messages import one_line
from splatexp.study.runner import StudyRequest, check_variants, run_study


def main() -> int:
    """Run the command and return the exit status: 1 where a run failed, 2 for input that is refused."""
    arguments = sys.argv[1:]
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        print((__doc__ or "").strip())
        return 0 if arguments else 2
    from splatexp.config.build import build_from_file, conf_dir

    try:
        names = [argument.partition("=")[2] for argument in arguments if argument.startswith("study=")]
        name = names[-1] if names else ""
        is_file = name.endswith((".yaml", ".yml"))
        path = Path(name) if is_file else conf_dir() / "study" / f"{name}.yaml"
        if not path.is_file():
            provided = sorted(path.stem for path in (conf_dir() / "study").glob("*.yaml"))
            raise ValueError(f"study: expected one of {', '.join(provided)} or a YAML file, got {name!r}")
        request: StudyRequest = build_from_file(StudyRequest, path, arguments)
        request = replace(request, folder=request.folder or str(Path("multirun", "studies", path.stem)))
        if unknown := [name for name in request.only if name not in request.variants]:
            raise ValueError(f"only: expected variants ({', '.join(request.variants)}), got {unknown[0]!r}")
        check_variants(request)
        reports, num_failed = run_study(request, " ".join(["python -m splatexp.study", *arguments]))
    except (OSError, ValueError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"{stop or 'stopped'}; the same command continues the study", file=sys.stderr)
        return getattr(stop, "code", 130)
    for report in reports:
        print(report)
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
