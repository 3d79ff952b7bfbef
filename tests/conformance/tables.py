"""Which of the standard library's executor tests are bound to FarmExecutor, and where they are not, why.

A test is named by the class that defines or inherits it and its method, as in `test.test_concurrent_futures`.
How many tests of the bound classes run, and how many are excluded below, on the interpreters at hand, for each farm
(CPython's builds without `test.test_concurrent_futures` skip them all):

| Python  | run | excluded |
| ------- | --- | -------- |
| 3.10.13 |  66 |       11 |
| 3.13.0  |  69 |       14 |
| 3.14.8  |  80 |       28 |
"""

from dataclasses import dataclass

from farm_executor import TaskExecutionError, WorkerLostError

BOUND = (
    "ProcessPoolExecutorTest",  # and ExecutorTest, which it extends
    "ProcessPoolShutdownTest",  # and ExecutorShutdownTest
    "WaitTests",
    "AsCompletedTests",
    "InitializerMixin",
    "FailingInitializerMixin",
    "ExecutorDeadlockTest",
    "FutureTests",  # bound to the farm's own class of futures
)

NOT_BOUND = {
    "ThreadPoolExecutorTest": "ThreadPoolExecutor's own: its threads, their names, objects shared with the test",
    "ThreadPoolShutdownTest": "ThreadPoolExecutor's own: its _threads",
    "ThreadPoolWaitTests": "WaitTests and a task that is a closure over the test's own Event",
    "FailingInitializerResourcesTest": "runs what was made for ProcessPoolExecutor, to look at its semaphores",
}

NOT_BOUND_MODULES = {
    "test_thread_pool": "ThreadPoolExecutor's own",
    "test_interpreter_pool": "InterpreterPoolExecutor's own",
}


@dataclass(frozen=True)
class Excluded:
    """One test that a bound class does not run."""

    test: str
    reason: str
    since: tuple[int, int, int] = (3, 10, 13)
    """The version in which it was first seen: interpreters from there on must have it, or this table is stale."""


_PROCESSES = "reads the private _processes"
_MANAGER = "joins the private _executor_manager_thread"
_OWN_POOL = "makes a ProcessPoolExecutor itself, whatever executor is under test"
_FORCE = "terminate_workers and kill_workers are ProcessPoolExecutor's own, and the test patches their inside"

EXCLUDED = (
    Excluded("ProcessPoolExecutorTest.test_killed_child", _PROCESSES),
    Excluded("ProcessPoolExecutorTest.test_saturation", _PROCESSES),
    Excluded("ProcessPoolExecutorTest.test_idle_process_reuse_one", _PROCESSES),
    Excluded("ProcessPoolExecutorTest.test_idle_process_reuse_multiple", _PROCESSES),
    Excluded("ProcessPoolExecutorTest.test_max_tasks_per_child", _PROCESSES, since=(3, 13, 0)),
    Excluded("ProcessPoolExecutorTest.test_broken_process_pool_traceback", _PROCESSES, since=(3, 14, 8)),
    Excluded(
        "ProcessPoolExecutorTest.test_traceback",
        "wants the private _RemoteTraceback as cause; the contract suite tests what is seen of a traceback",
    ),
    Excluded(
        "ProcessPoolExecutorTest.test_max_tasks_per_child_defaults_to_spawn_context",
        "reads the private _mp_context",
        since=(3, 13, 0),
    ),
    Excluded(
        "ProcessPoolExecutorTest.test_python_finalization_error",
        "lets the second thread of the pool fail to start; a farm has one thread",
        since=(3, 13, 0),
    ),
    *(
        Excluded(f"ProcessPoolExecutorTest.{test}", _MANAGER, since=(3, 14, 8))
        for test in (
            "test_shutdown_no_wait_max_tasks_gh119592",
            "test_gc_during_max_tasks_worker_exit_gh152967",
            "test_force_shutdown_during_max_tasks_worker_exit",
            "test_failed_worker_replacement_breaks_pool",
        )
    ),
    *(
        Excluded(f"ProcessPoolExecutorTest.{test}", _FORCE, since=(3, 14, 8))
        for test in (
            "test_terminate_workers",
            "test_kill_workers",
            "test_force_shutdown_workers_invalid_op",
            "test_force_shutdown_workers",
            "test_force_shutdown_workers_dead_workers",
            "test_force_shutdown_workers_not_started_yet",
            "test_force_shutdown_workers_stops_pool",
        )
    ),
    Excluded("ProcessPoolShutdownTest.test_processes_terminate", _PROCESSES),
    Excluded("ProcessPoolShutdownTest.test_context_manager_shutdown", _OWN_POOL),
    Excluded("ProcessPoolShutdownTest.test_del_shutdown", _OWN_POOL),
    Excluded("ProcessPoolShutdownTest.test_shutdown_no_wait", _OWN_POOL),
    Excluded("ProcessPoolShutdownTest.test_shutdown_gh_132969_case_1", _OWN_POOL, since=(3, 14, 8)),
    Excluded("ProcessPoolShutdownTest.test_shutdown_gh_132969_case_2", _OWN_POOL, since=(3, 14, 8)),
    Excluded(
        "FailingInitializerMixin.test_initializer",
        "reads the private _broken and the pool's logger; the contract suite tests an initializer that fails",
    ),
    Excluded("ExecutorDeadlockTest.test_shutdown_deadlock_pickle", _MANAGER),
)

DEADLOCK_OUTCOMES: dict[str, tuple[type[BaseException], str]] = {
    "test_exit_at_task_unpickle": (TaskExecutionError, "arguments that cannot be read cost their own task only"),
    "test_error_at_task_unpickle": (TaskExecutionError, "arguments that cannot be read cost their own task only"),
    "test_crash_at_task_unpickle": (WorkerLostError, "a crash costs the task that caused it, in every attempt"),
    "test_crash_during_func_exec_on_worker": (WorkerLostError, "a crash costs the task that caused it"),
    "test_crash_during_result_pickle_on_worker": (WorkerLostError, "a crash costs the task that caused it"),
    "test_error_during_result_unpickle_in_result_handler": (
        TaskExecutionError,
        "a result that cannot be read here is that task's",
    ),
    "test_exit_during_result_unpickle_in_result_handler": (TaskExecutionError, "so is its exit"),
    "test_shutdown_deadlock": (WorkerLostError, "also when it comes after shutdown"),
    "test_crash_big_data": (WorkerLostError, "also with much data on its way"),
}
"""What a farm answers where ProcessPoolExecutor breaks as a whole, by test of ExecutorDeadlockTest, and why.

A test not named here wants of a farm what it wants of the pool.
"""
