"""The scheduler alone, without sockets: what a task costs with few lanes and with many."""

import time

from farm_executor.core.scheduler import Assign, Scheduler, Task


def cost_per_task(lanes: int, tasks: int) -> float:
    """Seconds of CPU time that the scheduler takes for each task, from its submit to its end; each lasts 50 us."""
    scheduler = Scheduler()
    work: list[tuple[int, int, int]] = []

    def note(decisions: list) -> None:
        work.extend((d.lane, d.seq, len(d.tasks)) for d in decisions if isinstance(d, Assign))

    made = [Task(number, None) for number in range(tasks)]
    started = time.process_time()
    for lane in range(lanes):
        note(scheduler.lane_up(lane))
    for task in made:
        note(scheduler.submit(task))
    position = 0
    while position < len(work):
        lane, seq, count = work[position]
        position += 1
        note(scheduler.finished(lane, seq, count, 50.0 * count)[1])
    elapsed = time.process_time() - started
    assert not scheduler.unsettled
    return elapsed / tasks
