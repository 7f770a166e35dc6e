"""A worker process of ``executor="processes"``: a task per line on stdin, an answer per line on stdout."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import suppress

from interp.cluster.tasks import Task, describe, run_task

logger = logging.getLogger(__name__)


def main() -> None:
    """Do tasks until stdin is closed."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what a task prints must not end up among the answers
        for line in sys.stdin:
            task = Task(**json.loads(line))
            why = ""
            try:
                run_task(task)
            except Exception as error:  # whatever a task dies of, the others go on
                logger.warning("%s failed", task.name, exc_info=True)
                why = describe(error)
            answers.write(json.dumps(why) + "\n")
            answers.flush()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
