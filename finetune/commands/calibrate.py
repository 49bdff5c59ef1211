"""`finetune calibrate` and `finetune risk-coverage`: can a classifier's probabilities be trusted, and how far?"""

from __future__ import annotations

import argparse

_CALIBRATE = """\
Fit one temperature on the validation rows of a finished classifier and say what it changes on the test rows: log loss,
Brier score and calibration error (15 bins), with 95 % intervals, also of the difference. Writes calibration.json and
the reliability plot calibration.png into the run's folder. No prediction changes.
"""
_RISK = """\
What share of a finished classifier's answers is wrong when only the surest are given: at some coverages, with
thresholds taken from the validation rows, and the area under the curve (AURC). Writes risk_coverage.png into the run's
folder.
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `finetune calibrate` and `finetune risk-coverage` to the command line."""
    for name, text, about, call in (
        ("calibrate", "temperature scaling, and probabilities before and after", _CALIBRATE, _calibrate),
        ("risk-coverage", "how wrong a classifier is when it may leave rows out", _RISK, _risk),
    ):
        parser = subparsers.add_parser(
            name,
            help=text,
            description=about,
            epilog=f"Example:\n  finetune {name} runs/latest",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.add_argument("run", metavar="RUN", help="a finished run's folder")
        parser.set_defaults(call=call)


def _calibrate(arguments: argparse.Namespace) -> int:
    from finetune.calibrate import calibrate

    return calibrate(arguments.run)


def _risk(arguments: argparse.Namespace) -> int:
    from finetune.calibrate import print_risk_coverage

    return print_risk_coverage(arguments.run)
