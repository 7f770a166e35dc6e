"""One large job as many tasks, in this process, in others, or on a cluster: the same call, the same answer.

>>> tasks = cluster.plan("codes/", "runs/probe", n_tasks=16)                     # doctest: +SKIP
>>> summary = cluster.merge(cluster.run(tasks, executor="processes"))            # doctest: +SKIP
>>> probe = Sparse1DProbe().fit_summary(summary)                                 # doctest: +SKIP

`status` says from any process how far a run is, `cancel` ends it, and a monitor shows the logs of all its
tasks: ``interp.live.FitMonitor("runs/probe/logs")``.
"""

from interp.cluster.executors import TasksFailed, run
from interp.cluster.status import cancel, status
from interp.cluster.summary import Rows
from interp.cluster.tasks import Task, load, merge, plan, run_task

__all__ = ["Rows", "Task", "TasksFailed", "cancel", "load", "merge", "plan", "run", "run_task", "status"]
