"""Every parameter of lfarm's functions is checked where it is given, and the error names it."""

import inspect
import operator
from concurrent.futures import ThreadPoolExecutor

import pytest

from farm_executor import FarmExecutor, lfarm
from farm_executor.lfarm.kernel import Kernel, KernelOptions

NUMBERS = [3, 1, 2]
AT = ("127.0.0.1", 0)

# What is called, with an argument that will not do; the error; and the argument that it names.
WRONG = [
    (lambda: lfarm.make_kernel(AT, 7), TypeError, "name"),
    (lambda: lfarm.make_kernel(AT, timeout="5"), TypeError, "timeout"),
    (lambda: lfarm.make_kernel(AT, timeout=float("nan")), ValueError, "timeout"),
    (lambda: lfarm.make_kernel(7), ValueError, "address"),
    (lambda: lfarm.make_kernel("h:1", max_attempts=0), ValueError, "max_attempts"),
    (lambda: lfarm.make_kernel("h:1", heartbeat="5"), TypeError, "heartbeat"),
    (lambda: lfarm.make_kernel("h:1", attempts=1), TypeError, "attempts"),
    (lambda: lfarm.make_kernel(ThreadPoolExecutor(1), max_attempts=1), TypeError, "max_attempts"),
    (lambda: lfarm.end_kernel("yes"), TypeError, "wait"),
    (lambda: lfarm.set_kernel("a name"), TypeError, "kernel"),
    (lambda: lfarm.use_kernel("a name").__enter__(), TypeError, "kernel"),
    (lambda: lfarm.Channel("a name"), TypeError, "kernel"),
    (lambda: lfarm.task_category(None).__enter__(), ValueError, "category"),
    (lambda: lfarm.task_category([]).__enter__(), TypeError, "category"),
    (lambda: lfarm.task_priority("high").__enter__(), ValueError, "priority"),
    (lambda: lfarm.task_priority([]).__enter__(), ValueError, "priority"),
    (lambda: lfarm.kill_tasks(None), ValueError, "category"),
    (lambda: lfarm.kill_tasks([]), TypeError, "category"),
    (lambda: lfarm.kill_tasks("a", "b"), TypeError, "dry_run"),
    (lambda: lfarm.broadcast_task(len, persistent="yes"), TypeError, "persistent"),
    (lambda: lfarm.broadcast_task(len, timeout="1"), TypeError, "timeout"),
    (lambda: lfarm.broadcast_task(42), TypeError, "task"),
    (lambda: lfarm.deftask(42), TypeError, "function"),
    (lambda: lfarm.deftask(local="no"), TypeError, "local"),
    (lambda: lfarm.make_channel(fixed_capacity=1.5), TypeError, "fixed_capacity"),
    (lambda: lfarm.make_channel(fixed_capacity=0), ValueError, "fixed_capacity"),
    (lambda: lfarm.submit_task(lfarm.make_channel(), 42), TypeError, "task"),
    (lambda: lfarm.submit_task(None, len), TypeError, "channel"),
    (lambda: lfarm.receive_result(None), TypeError, "channel"),
    (lambda: lfarm.try_receive_result(None), TypeError, "channel"),
    (lambda: lfarm.try_receive_result(lfarm.make_channel(), timeout="1"), TypeError, "timeout"),
    (lambda: lfarm.try_receive_result(lfarm.make_channel(), timeout=float("nan")), ValueError, "timeout"),
    (lambda: lfarm.do_fast_receives(None, 1), TypeError, "channel"),
    (lambda: lfarm.do_fast_receives(lfarm.make_channel(), "1"), TypeError, "count"),
    (lambda: lfarm.submit_timeout(None, 1, 2), TypeError, "channel"),
    (lambda: lfarm.submit_timeout(lfarm.make_channel(), "1", 2), TypeError, "seconds"),
    (lambda: lfarm.submit_timeout(lfarm.make_channel(), -1, 2), ValueError, "seconds"),
    (lambda: lfarm.cancel_timeout(None, 2), TypeError, "timeout"),
    (lambda: lfarm.future(42), TypeError, "task"),
    (lambda: lfarm.speculate(42), TypeError, "task"),
    (lambda: lfarm.delay(42), TypeError, "function"),
    (lambda: lfarm.force(7, timeout="1"), TypeError, "timeout"),
    (lambda: lfarm.force(7, timeout=True), TypeError, "timeout"),
    (lambda: lfarm.plet(42, x=1), TypeError, "body"),
    (lambda: lfarm.pmap(42, NUMBERS), TypeError, "task"),
    (lambda: lfarm.pmap(abs), TypeError, "sequence"),
    (lambda: lfarm.pmap(abs, 7), TypeError, "sequence"),
    (lambda: lfarm.pmap(pow, NUMBERS, 7), TypeError, "sequence"),
    (lambda: lfarm.pmap(abs, NUMBERS, parts=0), ValueError, "parts"),
    (lambda: lfarm.pmap(abs, NUMBERS, parts=1.5), TypeError, "parts"),
    (lambda: lfarm.pmap(abs, NUMBERS, size=True), TypeError, "size"),
    (lambda: lfarm.pmap_into((), abs, NUMBERS), TypeError, "sequence that can be changed"),
    (lambda: lfarm.pmap_into([0], 42, NUMBERS), TypeError, "task"),
    (lambda: lfarm.pmap_into([0], abs, NUMBERS, size=-1), ValueError, "size"),
    (lambda: lfarm.preduce(operator.add, 7), TypeError, "sequence"),
    (lambda: lfarm.preduce(operator.add, NUMBERS, key=42), TypeError, "key"),
    (lambda: lfarm.preduce(operator.add, NUMBERS, start=None), TypeError, "start"),
    (lambda: lfarm.preduce(operator.add, NUMBERS, end="2"), TypeError, "end"),
    (lambda: lfarm.preduce(operator.add, NUMBERS, end=9), ValueError, "interval"),
    (lambda: lfarm.preduce(operator.add, NUMBERS, from_end=1), TypeError, "from_end"),
    (lambda: lfarm.preduce(operator.add, NUMBERS, recurse=1), TypeError, "recurse"),
    (lambda: lfarm.preduce_partial(operator.add, NUMBERS, from_end=1), TypeError, "from_end"),
    (lambda: lfarm.pmap_reduce(42, operator.add, NUMBERS), TypeError, "map_task"),
    (lambda: lfarm.pevery(abs), TypeError, "sequence"),
    (lambda: lfarm.psome(42, NUMBERS), TypeError, "task"),
    (lambda: lfarm.pfind_if(abs, NUMBERS, from_end=1), TypeError, "from_end"),
    (lambda: lfarm.pfind(1, NUMBERS, of_end=True), TypeError, "of_end"),
    (lambda: lfarm.pcount_if(abs, NUMBERS, key=42), TypeError, "key"),
    (lambda: lfarm.premove_if(42, NUMBERS), TypeError, "task"),
    (lambda: lfarm.psort(NUMBERS, reverse="yes"), TypeError, "reverse"),
    (lambda: lfarm.psort(NUMBERS, key=42), TypeError, "key"),
    (lambda: lfarm.start_server("127.0.0.1", "http", background=True), ValueError, "http"),
    (lambda: lfarm.start_server(*AT, background="yes"), TypeError, "background"),
    (lambda: lfarm.start_server(*AT, background=True, insecure="no"), TypeError, "insecure"),
    (lambda: lfarm.start_server(*AT, background=True, name=7), TypeError, "name"),
    (lambda: lfarm.start_server(*AT, background=True, workers=1.5), TypeError, "workers"),
    (lambda: lfarm.start_server(*AT, background=True, workers=True), TypeError, "workers"),
    (lambda: lfarm.start_server(*AT, background=True, workers=0), ValueError, "workers"),
    (lambda: lfarm.start_local_servers([AT], workers="2"), TypeError, "workers"),
    (lambda: lfarm.start_local_servers(7), ValueError, "addresses"),
    (lambda: lfarm.end_local_servers(7), ValueError, "address"),
    (lambda: lfarm.start_remote_servers(["ssh://host"], workers="2"), TypeError, "workers"),
    (lambda: lfarm.end_remote_servers(7), ValueError, "address"),
    (lambda: lfarm.log_level(["info"]), ValueError, "level"),
    (lambda: lfarm.log_stream("a name"), TypeError, "stream"),
]


@pytest.fixture(scope="module", autouse=True)
def kernel():
    """It runs nothing, as everything is refused before."""
    with Kernel(FarmExecutor(1), owned=True) as kernel:
        lfarm.set_kernel(kernel)
        yield kernel
    lfarm.set_kernel(None)


@pytest.mark.filterwarnings("ignore:.*timeout is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("call", "error", "named"), WRONG, ids=range(len(WRONG)))
def test_what_will_not_do_is_refused_by_name(kernel, call, error, named):
    with pytest.raises(error, match=named):
        call()
    assert kernel.executor.statistics().submitted == 0


def test_make_kernel_takes_what_the_executor_takes():
    parameters = dict(inspect.signature(FarmExecutor).parameters)
    del parameters["addresses"], parameters["name"]  # a kernel is told both by arguments of its own

    assert KernelOptions.__annotations__.keys() == parameters.keys()
