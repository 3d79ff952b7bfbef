"""Servers that a program starts in the background: they live until they are ended, or the program is."""

import gc
import os

import pytest
from client.test_lifecycle import DEADLINE, LINUX, _until, unmarked
from client.test_lifecycle import script as script  # a fixture
from server.peers import free_address

from farm_executor import FarmExecutor, end_server, ping, start_server
from farm_executor.launch import background


def place(address):
    host, _, port = address.rpartition(":")
    return host, int(port)


# -- within one process -------------------------------------------------------------------------------


def test_its_workers_get_the_environment_of_their_slots(no_leaks):
    env = {"FARM_TEST": "gpu {slot}"}
    with (
        start_server("127.0.0.1", 0, background=True, workers=2, env=env) as server,
        FarmExecutor(server.address) as farm,
    ):
        assert sorted(farm.broadcast(os.getenv, "FARM_TEST")) == ["gpu 0", "gpu 1"]
    assert "FARM_TEST" not in os.environ


def test_a_server_to_which_nobody_refers_lives_until_it_is_ended(no_leaks):
    host, port = place(free_address())
    others = set(background._kept)
    start_server(host, port, background=True, workers=1)
    gc.collect()

    with FarmExecutor((host, port)) as farm:
        assert farm.submit(abs, -7).result(timeout=DEADLINE) == 7
    end_server(host, port)
    assert _until(lambda: not ping(host, port, timeout=0))

    (first,) = background._kept - others
    assert first.wait(DEADLINE)
    del first
    with start_server("127.0.0.1", 0, background=True, workers=1) as second:
        assert background._kept - others == {second}, "the next start forgets those that have ended"
    assert background._kept <= others


def test_a_server_may_be_ended_more_than_once(no_leaks):
    server = start_server("127.0.0.1", 0, background=True, workers=1)
    server.end()
    server.end()
    server.drain()

    assert server.ended
    assert repr(server) == f"<Server {server.address}: pid {server.pid}, ended>"


# -- a program of its own -----------------------------------------------------------------------------


@LINUX
def test_lfarms_first_program_word_for_word(script):
    """As its README has it: two servers, each started by a statement, and then a sum."""
    first, second = place(free_address()), place(free_address())

    code, out, err = script.run(f"""
        # Create two servers bound to two ports.
        from farm_executor import lfarm
        lfarm.start_server("127.0.0.1", {first[1]}, background=True)
        lfarm.start_server("127.0.0.1", {second[1]}, background=True)

        # Connect to the servers.
        import operator
        lfarm.set_kernel(lfarm.make_kernel([("127.0.0.1", {first[1]}),
                                            ("127.0.0.1", {second[1]})]))

        channel = lfarm.make_channel()
        lfarm.submit_task(channel, operator.add, 3, 4)
        print(lfarm.receive_result(channel))
    """)

    assert (code, out) == (0, "7\n")
    # Another connection may have been on its way when the program ended.
    assert [line for line in err.splitlines() if not line.endswith("it hung up")] == []
    assert script.clean(0.0), "all has ended when the program has"


SUBMIT = {
    "executor": "FarmExecutor(addresses).submit(late, word)",
    "kernel": "lfarm.submit_task(channel, late, word)",
    "channel with a capacity": "lfarm.submit_task(narrow, late, word)",
    "future": "lfarm.future(late, word)",
}


@LINUX
@pytest.mark.parametrize("kept", ["servers = ", ""], ids=["kept", "not kept"])
@pytest.mark.parametrize("submit", SUBMIT.values(), ids=SUBMIT)
def test_a_program_that_ends_with_work_under_way_on_its_own_servers_finishes_it(script, submit, kept):
    ports = [place(free_address())[1] for _ in range(2)]

    code, out, err = script.run(f"""
        import time
        from farm_executor import FarmExecutor, lfarm, start_server

        def late(text):
            time.sleep(0.3)
            print(text + "\\n", end="", flush=True)

        addresses = [("127.0.0.1", port) for port in {ports}]
        {kept}[start_server(*address, background=True, workers=1) for address in addresses]
        lfarm.set_kernel(lfarm.make_kernel(addresses))
        channel, narrow = lfarm.make_channel(), lfarm.make_channel(fixed_capacity=1)
        for word in ["apple", "fig", "pear", "plum", "quince"]:
            {submit}
    """)

    assert (code, sorted(unmarked(out).split()), err) == (0, ["apple", "fig", "pear", "plum", "quince"], "")
    assert script.clean(0.0)


@LINUX
def test_a_program_that_only_starts_a_server_ends_it(script):
    code, out, err = script.run("""
        from farm_executor import start_server
        start_server("127.0.0.1", 0, background=True, workers=1)
    """)

    assert (code, out, err) == (0, "", "")
    assert script.clean(0.0)


ENDINGS = {
    "ended": "server.end()",
    "killed": "os.kill(server.pid, signal.SIGKILL)",
    "drained": "server.drain(); server.wait()",
}


@LINUX
@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_a_program_whose_servers_are_gone_for_good_ends_and_says_what_is_lost(script, ending):
    code, out, err = script.run(f"""
        import os, signal, time
        import farm_executor.client.lifetime
        from farm_executor import FarmExecutor, start_server

        farm_executor.client.lifetime.EXIT_SECONDS = 0.5
        server = start_server("127.0.0.1", 0, background=True, workers=1)
        farm = FarmExecutor(server.address, resume_timeout=0.2)
        farm.submit(abs, -1).result()
        futures = [farm.submit(time.sleep, 0.2) for _ in range(10)]
        futures[-1].add_done_callback(lambda future: print(repr(future.exception())))
        {ending}
    """)

    reason = "none of its servers could be reached for 0.5 s at the end of the program"
    assert (code, out) == (0, f"BrokenFarmError({reason!r})\n")
    assert "gave up tasks=" in err
    assert "Connection refused" in err
    processes, folders = script.left()
    assert not processes
    # The next server here removes the folder of one that could not do so itself.
    assert all("SIGKILL" in ending and name.startswith("farm-modules-") for name in folders)


@LINUX
def test_a_program_that_ends_waits_for_a_server_that_comes_back(script):
    host, port = place(free_address())
    process = script.start(f"""
        from farm_executor import FarmExecutor

        farm = FarmExecutor(("{host}", {port}))
        farm.submit(abs, -7).add_done_callback(lambda future: print(future.result()))
        print("over", flush=True)
    """)
    assert process.stdout.readline() == "over\n"

    with start_server(host, port, background=True, workers=1):
        out, _ = process.communicate(timeout=DEADLINE)

    assert (process.returncode, out) == (0, "7\n")


@LINUX
def test_a_forked_child_ends_nothing_of_its_parents_and_waits_for_nothing(script):
    code, out, err = script.run("""
        import os, sys, time, warnings
        from farm_executor import FarmExecutor, lfarm, start_server

        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on, of a fork with threads: our subject

        def wait_for(event_path):
            while not os.path.exists(event_path):
                time.sleep(0.01)
            return "parent's"

        go = os.path.join(os.environ["TMPDIR"], "go")
        server = start_server("127.0.0.1", 0, background=True, workers=2)
        kernel = lfarm.make_kernel(server.address)
        narrow = lfarm.Channel(kernel, fixed_capacity=1)
        for _ in range(5):
            narrow.submit(wait_for, go)
        pid = os.fork()
        if pid == 0:
            print("child:", server.ended, server.wait(0), flush=True)
            server.drain()
            server.end()
            sys.exit(0)  # while the parent's tasks wait for what comes after
        assert os.waitpid(pid, 0)[1] == 0
        open(go, "w").close()
        print("parent:", server.ended, set(narrow), flush=True)
        os.remove(go)
    """)

    assert err == ""
    assert (code, out.splitlines()) == (0, ["child: True True", """parent: False {"parent's"}"""])
    assert script.clean(0.0)


@LINUX
def test_a_forked_child_does_not_keep_its_parents_servers_alive(script):
    process = script.start("""
        import os, sys, warnings
        from farm_executor import start_server

        warnings.simplefilter("ignore", DeprecationWarning)
        server = start_server("127.0.0.1", 0, background=True, workers=1)
        if os.fork() == 0:
            sys.stdin.read()
            sys.exit(0)
        print(server.pid, flush=True)
        os.kill(os.getpid(), 9)
    """, stdin=-1)  # fmt: skip
    pid = int(process.stdout.readline())
    process.wait(DEADLINE)

    assert _until(lambda: not os.path.exists(f"/proc/{pid}"))

    process.stdin.close()
    assert script.clean()
