"""joblib's backend "farm": what joblib asks of a backend, on an executor that is given, on servers, on neither."""

import functools
import gc
import operator
import os
import pickle
import subprocess
import sys
import threading
import time

import pytest
from server.processes import wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a farm's servers need fork")
joblib = pytest.importorskip("joblib")
numpy = pytest.importorskip("numpy")

import farm_executor.joblib  # noqa: E402
from farm_executor import FarmExecutor, start_server  # noqa: E402
from farm_executor.integrations import arrays, backend, inside, reused  # noqa: E402
from farm_executor.wire.cores import usable_cores  # noqa: E402

Parallel, delayed, parallel_config = joblib.Parallel, joblib.delayed, joblib.parallel_config


@pytest.fixture(scope="module")
def farm():
    with FarmExecutor(2) as executor:
        yield executor


@pytest.fixture(scope="module")
def server():
    with start_server("127.0.0.1", 0, background=True, workers=3) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_farm_is_kept():
    yield
    reused._let_go()
    with reused._current.lock:
        reused._current.stop_timer()


def test_calls_run_on_the_executor_that_is_given_and_leave_it_open(farm):
    with parallel_config("farm", executor=farm):
        pids = Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(20))
        doubled = Parallel(n_jobs=2)(delayed(lambda x: 2 * x)(i) for i in range(100))

    workers = {worker.pid for server in farm.statistics().servers for worker in server.workers}
    assert set(pids) <= workers
    assert doubled == [2 * i for i in range(100)]
    assert farm.submit(pow, 2, 5).result() == 32


def test_calls_run_on_servers_and_all_their_workers_are_counted(server):
    with parallel_config("farm", addresses=[server.address]):
        assert joblib.effective_n_jobs(-1) == 3
        assert joblib.effective_n_jobs(-2) == 2
        assert joblib.effective_n_jobs(None) == 3  # unlike loky's 1: nobody names a farm to use one worker
        parents = Parallel()(delayed(os.getppid)() for _ in range(6))

    assert len(set(parents)) == 1


def test_without_either_workers_are_started_here_and_kept_for_the_next_call():
    first = set(Parallel(n_jobs=2, backend="farm")(delayed(os.getppid)() for _ in range(4)))
    second = set(Parallel(n_jobs=2, backend="farm")(delayed(os.getppid)() for _ in range(4)))

    assert first == second
    assert len(first) == 1


def test_workers_that_nobody_has_used_for_a_while_are_given_back(monkeypatch):
    monkeypatch.setattr(reused, "IDLE_SECONDS", 0.0)

    Parallel(n_jobs=2, backend="farm")(delayed(abs)(i) for i in range(4))

    reused._current.timer.join()
    assert reused._current.executor is None


def meet(folder, n):
    """How many calls have begun and not ended, at most, as seen by this one."""
    mine = folder / str(n)
    mine.touch()
    most = 0
    for _ in range(20):
        most = max(most, len(list(folder.iterdir())))
        time.sleep(0.001)
    mine.unlink()
    return most


def test_no_more_batches_run_at_once_than_n_jobs(server, tmp_path):
    with parallel_config("farm", addresses=[server.address]):
        most = Parallel(n_jobs=2, pre_dispatch="all", batch_size=1)(delayed(meet)(tmp_path, n) for n in range(12))

    assert max(most) <= 2


def variables(*names):
    return [os.environ.get(name) for name in names]


def test_the_threads_of_numeric_libraries_are_bounded(farm, monkeypatch):
    with parallel_config("farm", executor=farm, inner_max_num_threads=3):
        explicit = Parallel(n_jobs=2)(delayed(variables)(*inside.LIMITED) for _ in range(4))
    with parallel_config("farm", executor=farm):
        shared = Parallel(n_jobs=2)(delayed(variables)(*inside.LIMITED) for _ in range(4))

    share = str(max(int(usable_cores()) // 2, 1))
    assert explicit == [["3"] * len(inside.LIMITED)] * 4
    assert shared == [[share] * len(inside.LIMITED)] * 4
    assert list(inside.LIMITED) == joblib.parallel.ParallelBackendBase.MAX_NUM_THREADS_VARS


def test_a_worker_that_comes_later_is_bounded_too(farm):
    with parallel_config("farm", executor=farm, inner_max_num_threads=5):
        Parallel(n_jobs=2)(delayed(abs)(i) for i in range(2))
        farm.kill_tasks("none")
        doomed = [farm.submit(os.getpid).result() for _ in range(4)]
        for pid in set(doomed):
            os.kill(pid, 9)

        assert Parallel(n_jobs=2)(delayed(variables)("OMP_NUM_THREADS") for _ in range(2)) == [["5"]] * 2


def nested():
    def level():
        backend, n_jobs = joblib.parallel.get_active_backend()
        return type(backend).__name__, backend.nesting_level

    return level(), Parallel(n_jobs=2)(delayed(level)() for _ in range(2))


def test_nested_calls_use_threads_and_then_none(farm):
    with parallel_config("farm", executor=farm):
        assert (
            Parallel(n_jobs=2)(delayed(nested)() for _ in range(2))
            == [(("ThreadingBackend", 1), [("SequentialBackend", 2)] * 2)] * 2
        )


def farm_in_a_task():
    return Parallel(n_jobs=2, backend="farm")(delayed(abs)(-i) for i in range(3))


def test_the_backend_is_known_in_a_worker(farm):
    with parallel_config("farm", executor=farm):
        assert Parallel(n_jobs=2)(delayed(farm_in_a_task)() for _ in range(2)) == [[0, 1, 2]] * 2


def remember(value):
    os.environ["REMEMBERED"] = value


def test_an_initializer_is_the_farms():
    with parallel_config("farm", initializer=remember, initargs=("this",)):
        assert Parallel(n_jobs=2)(delayed(variables)("REMEMBERED") for _ in range(3)) == [["this"]] * 3
    said = Parallel(n_jobs=2, backend="farm", initializer=remember, initargs=("that",))(
        delayed(variables)("REMEMBERED") for _ in range(3)
    )
    assert said == [["that"]] * 3


def wait(seconds):
    time.sleep(seconds)


def fail_once_the_other_runs(folder, n):
    if n:
        (folder / "runs").touch()
        wait(600)
    while not (folder / "runs").exists():
        time.sleep(0.001)
    raise LookupError("as it should")


def test_an_error_ends_what_runs_and_nothing_else_of_the_farm(tmp_path):
    with FarmExecutor(3) as farm:
        other = farm.submit(wait, 2)
        with parallel_config("farm", executor=farm), pytest.raises(LookupError, match="as it should"):
            Parallel(n_jobs=2)(delayed(fail_once_the_other_runs)(tmp_path, n) for n in range(2))

        assert farm.statistics().killed == 1
        assert other.result() is None
        assert farm.statistics().resubmitted == 0


def test_an_error_of_the_farm_reaches_the_caller(farm):
    with FarmExecutor(2) as closed:
        pass

    with parallel_config("farm", executor=closed), pytest.raises(RuntimeError, match="shut"):
        Parallel(n_jobs=2)(delayed(abs)(i) for i in range(3))


def test_a_farm_that_breaks_meanwhile_is_said_not_waited_for():
    with FarmExecutor(2) as farm:

        def calls():
            for i in range(40):
                if i == 20:
                    farm.kill_workers()
                yield delayed(abs)(i)

        with parallel_config("farm", executor=farm), pytest.raises(Exception, match="shut|killed|cancel"):
            Parallel(n_jobs=2)(calls())


def test_results_come_one_by_one(farm):
    with parallel_config("farm", executor=farm):
        ordered = Parallel(n_jobs=2, return_as="generator")(delayed(abs)(-i) for i in range(50))
        assert next(ordered) == 0
        assert list(ordered) == list(range(1, 50))
        unordered = Parallel(n_jobs=2, return_as="generator_unordered")(delayed(abs)(-i) for i in range(50))
        assert sorted(unordered) == list(range(50))


def test_what_gives_the_tasks_may_use_the_farm_itself(farm):
    with parallel_config("farm", executor=farm):
        calls = (delayed(abs)(farm.submit(operator.neg, i).result()) for i in range(30))
        assert Parallel(n_jobs=2)(calls) == list(range(30))


def test_a_timeout_is_joblibs(farm):
    with parallel_config("farm", executor=farm), pytest.raises(Exception) as caught:  # multiprocessing's own kind
        Parallel(n_jobs=2, timeout=0.01)(delayed(wait)(600) for _ in range(2))

    assert type(caught.value).__name__ == "TimeoutError"


# -- large arrays -------------------------------------------------------------------------------------------

LARGE = 3 * 1024 * 1024 // 8


def seen(array):
    """What a task sees of an array: its sum, whether it may write there, and whether the memory is a file's."""
    with open("/proc/self/maps") as file:
        mapped = sum("memfd:farm-joblib" in line for line in file)
    return float(array.sum()), array.flags.writeable, mapped > 0


needs_maps = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="workers map files of Linux")


@needs_maps
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_array_is_mapped_by_workers_on_this_machine(farm, order):
    array = numpy.ones((3, LARGE // 3), order=order)
    with parallel_config("farm", executor=farm):
        assert Parallel(n_jobs=2)(delayed(seen)(array) for _ in range(6)) == [(LARGE, False, True)] * 6
        assert Parallel(n_jobs=2)(delayed(seen)(array[:, :9]) for _ in range(2)) == [(27.0, True, False)] * 2
        assert (
            Parallel(n_jobs=2, max_nbytes=None)(delayed(seen)(array) for _ in range(2))
            == [(LARGE, True, False)] * 2
        )


def nested_sum(parts):
    return [float(part.sum()) for part in parts]


@needs_maps
def test_large_arrays_are_found_in_lists_and_in_sparse_matrices(farm, monkeypatch):
    written = []
    write = arrays._Buffer.write
    monkeypatch.setattr(arrays._Buffer, "write", lambda self, memory: (written.append(1), write(self, memory)))
    array = numpy.ones(LARGE)
    with parallel_config("farm", executor=farm):
        assert Parallel(n_jobs=2)(delayed(nested_sum)([array, array]) for _ in range(4)) == [[LARGE, LARGE]] * 4
        assert len(written) == 1


class Halves:
    """Pickled as a large copy, which nothing but its pickle refers to."""

    __array__ = None

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        return Halves, (self.array[::2].copy(),)


@needs_maps
def test_memory_that_pickling_has_made_is_there_until_the_task_has_ended(farm, monkeypatch):
    monkeypatch.setattr(inside, "Halves", Halves, raising=False)
    monkeypatch.setattr(Halves, "__module__", inside.__name__)
    halves = Halves(numpy.ones(2 * LARGE))
    place = arrays.Arrays(farm, 1024, False)
    standing = place.replaced(halves)
    (descriptor,) = [each.descriptor for each in standing._parts[1]]

    assert os.fstat(descriptor).st_size == LARGE * 8 + inside.TOKEN_SIZE
    del standing
    with pytest.raises(OSError):
        os.fstat(descriptor)
    place.close()


@needs_maps
def test_an_array_may_go_in_a_thread_while_another_places_one(farm):
    """That thread may have what the other waits for: it must not wait."""
    place = arrays.Arrays(farm, 1024, False)
    going = [numpy.ones(LARGE)]
    place.replaced(going[0])
    with place._lock:
        thread = threading.Thread(target=going.clear)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
    assert not place._buffers
    place.close()


def write_there(array):
    array[0] = 7
    return float(array[:2].sum())


@needs_maps
def test_what_a_task_writes_is_its_own(farm):
    array = numpy.ones(LARGE)
    with parallel_config("farm", executor=farm):
        assert Parallel(n_jobs=2, mmap_mode="c")(delayed(write_there)(array) for _ in range(4)) == [8.0] * 4
    assert array[0] == 1


def test_an_array_that_has_changed_between_two_calls_is_sent_as_it_is_now(farm):
    array = numpy.ones(LARGE)
    with parallel_config("farm", executor=farm), Parallel(n_jobs=2) as parallel:
        assert parallel(delayed(numpy.sum)(array) for _ in range(3)) == [LARGE] * 3
        array[:] = 2
        assert parallel(delayed(numpy.sum)(array) for _ in range(3)) == [2 * LARGE] * 3


def test_servers_elsewhere_get_a_repeated_array_once(farm, monkeypatch):
    monkeypatch.setattr(arrays, "_may_be_near", lambda executor: False)
    sent = []
    share = arrays.Arrays._share
    monkeypatch.setattr(arrays.Arrays, "_share", lambda self, *args: (sent.append(1), share(self, *args))[1])
    array = numpy.ones(LARGE)
    with parallel_config("farm", executor=farm):
        once = Parallel(n_jobs=2)(delayed(numpy.sum)(numpy.ones(LARGE)) for _ in range(4))
        assert not sent  # each is used by one task
        often = Parallel(n_jobs=2)(delayed(numpy.sum)(array) for _ in range(8))

    assert once == [LARGE] * 4
    assert often == [LARGE] * 8
    assert len(sent) == 1
    # It is let go when the call has ended, with what joblib keeps of that.
    wait_until(lambda: gc.collect() >= 0 and not farm._engine.sharing.live, "nothing is shared any more")


@pytest.mark.parametrize(("mode", "writable"), [("r", False), ("c", True)])
def test_servers_elsewhere_get_it_as_those_here_do(farm, monkeypatch, mode, writable):
    monkeypatch.setattr(arrays, "_may_be_near", lambda executor: False)
    array = numpy.ones(LARGE)
    with parallel_config("farm", executor=farm):
        found = Parallel(n_jobs=2, mmap_mode=mode)(delayed(seen)(array) for _ in range(8))
        if writable:
            assert Parallel(n_jobs=2, mmap_mode=mode)(delayed(write_there)(array) for _ in range(4)) == [8.0] * 4
    assert [total for total, *_ in found] == [LARGE] * 8
    assert {flag for _, flag, _ in found[2:]} == {writable}


def test_servers_without_room_get_an_array_with_each_task(monkeypatch):
    monkeypatch.setattr(arrays, "_may_be_near", lambda executor: False)
    array = numpy.ones(LARGE)
    with FarmExecutor(2, max_shared=1) as farm, parallel_config("farm", executor=farm):
        assert Parallel(n_jobs=2)(delayed(numpy.sum)(array) for _ in range(8)) == [LARGE] * 8


def test_a_worker_that_does_not_find_an_array_gets_it_with_the_task(farm, monkeypatch):
    monkeypatch.setattr(arrays.os, "getpid", lambda: 2**22 + 1)  # nobody's
    array = numpy.ones(LARGE)
    with parallel_config("farm", executor=farm):
        assert Parallel(n_jobs=2)(delayed(numpy.sum)(array) for _ in range(8)) == [LARGE] * 8


@needs_maps
def test_a_file_of_another_process_is_not_taken_for_the_array(tmp_path):
    other = tmp_path / "other"
    other.write_bytes(bytes(100 + inside.TOKEN_SIZE))
    with open(other, "rb") as file:
        away = inside.Away(b"t" * inside.TOKEN_SIZE, 100, os.getpid(), file.fileno())
        with pytest.raises(inside.MissingBufferError):
            inside._map(away, False)
        with pytest.raises(inside.MissingBufferError):
            inside._map(away._replace(size=99), False)


@needs_maps
def test_no_descriptor_is_left(farm, no_leaks):
    with parallel_config("farm", executor=farm):
        for _ in range(3):
            Parallel(n_jobs=2)(delayed(numpy.sum)(numpy.ones(LARGE)) for _ in range(4))


# -- bad input ------------------------------------------------------------------------------------------------


def test_without_joblib_the_error_names_what_to_install():
    code = "import sys; sys.modules['joblib'] = None; import farm_executor.joblib"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert "ModuleNotFoundError: joblib is not installed here: python -m pip install 'farm_executor[joblib]'" in (
        said.stderr
    )


def test_what_does_not_go_together_is_refused(farm):
    with pytest.raises(TypeError, match="leave out addresses, max_workers"):
        parallel_config("farm", addresses=["host:1"], executor=farm, max_workers=2)
    with pytest.raises(TypeError, match="not ThreadPoolExecutor"):
        from concurrent.futures import ThreadPoolExecutor

        parallel_config("farm", executor=ThreadPoolExecutor(1))
    with parallel_config("farm", executor=farm):
        with pytest.raises(TypeError, match="leave out initializer"):
            Parallel(n_jobs=2, initializer=remember)(delayed(abs)(i) for i in range(2))
        with pytest.raises(ValueError, match="n_jobs == 0"):
            Parallel(n_jobs=0)(delayed(abs)(i) for i in range(2))
    with parallel_config("farm", no_such_setting=1), pytest.raises(TypeError, match="no_such_setting"):
        Parallel(n_jobs=2)(delayed(abs)(i) for i in range(2))


def test_servers_none_of_which_answers_are_said(monkeypatch):
    monkeypatch.setattr(backend, "ANSWER_SECONDS", 0.05)
    with parallel_config("farm", addresses=["127.0.0.1:1"]), pytest.raises(TimeoutError, match="127.0.0.1:1"):
        Parallel(n_jobs=-1)(delayed(abs)(i) for i in range(2))


def test_a_backend_is_pickled_as_it_was_made(farm):
    made = farm_executor.joblib.FarmBackend(["host:1"], inner_max_num_threads=2, nesting_level=1, heartbeat=2.0)

    copied = pickle.loads(pickle.dumps(made))

    assert copied.__reduce__() == made.__reduce__()


def test_scikit_learn_searches_on_the_farm(farm):
    pytest.importorskip("sklearn")
    from sklearn.datasets import make_classification
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    X, y = make_classification(100, 5, random_state=0)
    search = functools.partial(GridSearchCV, SVC(), {"C": [0.1, 1, 10]}, cv=3)
    with parallel_config("farm", executor=farm):
        ours = search(n_jobs=2).fit(X, y)

    assert farm.statistics().succeeded >= 9
    assert list(ours.cv_results_["mean_test_score"]) == list(search().fit(X, y).cv_results_["mean_test_score"])
