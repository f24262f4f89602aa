"""`mmssl evaluate`: metrics of a run on a split."""

from __future__ import annotations

import argparse
import json

from mmssl.cli.common import (
    Commands,
    add_device_options,
    add_run_options,
    load_run,
    print_metrics,
    resolve_device,
)


def add(commands: Commands) -> None:
    """Register the command."""
    evaluate = commands.add_parser("evaluate", help="rank all items and print the metrics")
    add_run_options(evaluate)
    evaluate.add_argument(
        "--split", choices=["val", "test"], default="test", help="split to evaluate (default: test)"
    )
    evaluate.add_argument("--json", action="store_true", help="print the metrics as JSON")
    add_device_options(evaluate)
    evaluate.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    from mmssl.evaluation.evaluator import Evaluator

    _, dataset, graph, scorer = load_run(arguments, resolve_device(arguments))
    metrics = Evaluator(dataset, arguments.split, graph).evaluate(scorer)
    if arguments.json:
        print(json.dumps({"split": arguments.split, **metrics}))
    else:
        print_metrics(metrics)
    return 0
