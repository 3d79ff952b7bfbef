"""Functions and classes of a program's own ``__main__``, or of a notebook, on workers and back.

The client's ``__main__`` is a `Notebook` here, whose cells are run one after the other; whole programs are run too.
Most tests share one worker, on which what former tests sent is still there, as in a long session.
"""

import copyreg
import functools
import importlib.util
import linecache
import operator
import subprocess
import sys
import textwrap
import types

import cloudpickle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farm_executor import FarmExecutor
from farm_executor.data import payload
from farm_executor.server.worker import is_reusable

DEADLINE = 60


class Notebook:
    """A client's ``__main__``, filled by cells; what they define are its attributes."""

    def __init__(self, module):
        self._module = module
        self._cells = 0

    def run(self, source):
        self._cells += 1
        name, source = f"<cell {self._cells} of {id(self)}>", textwrap.dedent(source)
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        exec(compile(source, name, "exec"), vars(self._module))

    def __getattr__(self, name):
        return getattr(self._module, name)


@pytest.fixture
def nb(monkeypatch):
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    return Notebook(module)


@pytest.fixture(scope="module")
def shared_farm():
    with FarmExecutor(1) as farm:
        yield farm


@pytest.fixture
def call(shared_farm):
    """Call a function on the worker."""
    return lambda function, *args: shared_farm.submit(function, *args).result(timeout=DEADLINE)


@pytest.fixture
def farms():
    """Makes farms of one worker, which nothing else uses."""
    made = []

    def make(**options):
        farm = FarmExecutor(1, **options)
        made.append(farm)
        return lambda function, *args: farm.submit(function, *args).result(timeout=DEADLINE)

    yield make
    for farm in made:
        farm.shutdown()


def state(cls):
    """What a class holds, to be compared with by identity, but for the caches that Python keeps there."""
    caches = ("__slotnames__", "__annotations_cache__")
    return {name: id(value) for name, value in vars(cls).items() if name not in caches}


# -- the client's own classes -------------------------------------------------------------------------------

CLASSES = {
    "plain": """
        class C:
            def __init__(self, n): self.n = n
            def __eq__(self, other): return type(other) is C and self.n == other.n
            __hash__ = None
            def use(self): return self.n * FACTOR
    """,
    "slots": """
        class C:
            __slots__ = ("n", "__hidden")
            def __init__(self, n): self.n = n; self.__hidden = -n
            def all(self): return self.n, self.__hidden
            def __eq__(self, other): return type(other) is C and self.all() == other.all()
            __hash__ = None
            def use(self): return self.n * FACTOR
    """,
    "descriptors": """
        import functools
        class C:
            made = 0
            def __init__(self, n): self.n = n
            def __eq__(self, other): return type(other) is C and self.n == other.n
            __hash__ = None
            @property
            def half(self): return self.n / 2
            @functools.cached_property
            def lazy(self): return self.n + 1
            @functools.lru_cache(maxsize=None)
            def __hash__(self): return 1
            @classmethod
            def make(cls): return cls(1)
            @staticmethod
            def static(): return 1
            def zero(self): return self.half * 2 - self.n + self.make().n * self.static() - self.lazy + self.n
            def use(self): return self.n * FACTOR + self.zero()
    """,
    "dataclass": """
        from dataclasses import dataclass, field, KW_ONLY
        from typing import ClassVar
        @dataclass(order=True)
        class C:
            n: int
            items: list = field(default_factory=lambda: [1], repr=False, metadata={"unit": "m"})
            _: KW_ONLY
            flag: bool = False
            shared: ClassVar[list] = []
            def use(self): return self.n * FACTOR
    """,
    "frozen dataclass with slots": """
        from dataclasses import dataclass
        @dataclass(frozen=True, slots=True)
        class C:
            n: int
            def use(self): return self.n * FACTOR
    """,
    "named tuple": """
        from typing import NamedTuple
        class C(NamedTuple):
            n: int
            name: str = "x"
            def use(self): return self.n * FACTOR
    """,
    "subclass of a named tuple": """
        from collections import namedtuple
        class C(namedtuple("Base", "n")):
            def use(self): return self.n * FACTOR
    """,
    "subclass of a builtin": """
        class C(int):
            @property
            def n(self): return int(self)
            def use(self): return self * FACTOR
    """,
    "abstract": """
        import abc
        class Shape(abc.ABC):
            @abc.abstractmethod
            def use(self): ...
            def __eq__(self, other): return type(self) is type(other) and vars(self) == vars(other)
            __hash__ = None
        class C(Shape):
            def __init__(self, n): self.n = n
            def use(self): return self.n * FACTOR
        class Unrelated: pass
        Shape.register(Unrelated)
    """,
    "generic": """
        from typing import Generic, TypeVar
        T = TypeVar("T")
        class Base(Generic[T]):
            def __init__(self, n: T): self.n = n
            def __eq__(self, other): return type(self) is type(other) and self.n == other.n
            __hash__ = None
        class C(Base[int]):
            def __init__(self, n): super().__init__(n)
            def use(self): return self.n * FACTOR
    """,
    "metaclass": """
        class Meta(type):
            def __len__(cls): return 0  # so that the class itself is false
            def double(cls): return 2
        class C(metaclass=Meta):
            def __init__(self, n): self.n = n
            def __eq__(self, other): return type(other) is C and self.n == other.n
            __hash__ = None
            def use(self): return self.n * FACTOR
    """,
    "registering": """
        class Base:
            registry = []
            def __init_subclass__(cls, **kwargs):
                super().__init_subclass__(**kwargs)
                Base.registry.append(cls)
        class C(Base):
            def __init__(self, n): self.n = n
            def __eq__(self, other): return type(other) is C and self.n == other.n
            __hash__ = None
            def use(self): return self.n * FACTOR if Base.registry == [C] else Base.registry
    """,
    "exception": """
        class C(Exception):
            def __init__(self, n): super().__init__(f"text of {n}"); self.n = n
            def __eq__(self, other): return type(other) is C and self.n == other.n and self.args == other.args
            __hash__ = None
            def use(self): return self.n * FACTOR
            def __reduce__(self): return type(self), (self.n,)
    """,
    "nested": """
        class Outer:
            class C:
                def __init__(self, n): self.n = n
                def __eq__(self, other): return type(other) is Outer.C and self.n == other.n
                __hash__ = None
                def use(self): return self.n * FACTOR
        C = Outer.C
    """,
}

USES = """
FACTOR = 10
def make(n): return C(n)
def use(c): return c.use()
def echo(value): return value
def is_mine(c): return type(c) is C and isinstance(c, C)
"""


@pytest.mark.parametrize("kind", CLASSES)
def test_an_instance_that_comes_back_is_of_the_clients_own_class_and_leaves_that_as_it_was(nb, call, kind):
    nb.run(textwrap.dedent(CLASSES[kind]) + USES)
    value, before, method = nb.C(3), state(nb.C), nb.C.use

    echoed, made = call(nb.echo, value), call(nb.make, 3)

    assert type(echoed) is type(made) is nb.C
    assert isinstance(echoed, nb.C)
    assert echoed == made == value
    assert call(nb.is_mine, value)
    assert call(nb.use, value) == value.use() == 30
    assert state(nb.C) == before
    assert nb.C.use is method


@pytest.mark.parametrize("kind", CLASSES)
def test_methods_see_later_changes_of_the_clients_globals_after_a_round_trip(nb, call, kind):
    nb.run(textwrap.dedent(CLASSES[kind]) + USES)
    back = call(nb.echo, nb.C(3))

    nb.run("FACTOR = 100")

    assert back.use() == 300
    assert call(nb.use, back) == 300
    assert call(nb.echo, call(nb.echo, back)).use() == 300
    nb.run("FACTOR = 10")
    assert call(nb.use, back) == back.use() == 30


@pytest.mark.parametrize("kind", CLASSES)
def test_after_a_class_is_defined_anew_its_old_and_new_instances_keep_apart(nb, call, kind):
    source = textwrap.dedent(CLASSES[kind]) + USES
    nb.run(source)
    old_class, old = nb.C, call(nb.make, 1)

    nb.run(source.replace("* FACTOR", "* FACTOR + 1"))
    new = call(nb.make, 1)

    assert type(old) is old_class
    assert type(new) is nb.C
    assert nb.C is not old_class
    assert (old.use(), new.use()) == (10, 11)
    assert [type(value) for value in call(nb.echo, [old, new])] == [old_class, nb.C]
    assert (call(nb.is_mine, old), call(nb.is_mine, new)) == (False, True)
    assert (call(nb.use, old), call(nb.use, new)) == (10, 11)


def test_members_of_enums_keep_their_identity(nb, call):
    nb.run("""
        import enum
        class Color(enum.Enum):
            RED = 1
            GREEN = enum.auto()
            ROUGE = 1
            def paint(self): return (self.name, PAINT)
        class Level(enum.IntEnum):
            LOW = 1
        class Mode(enum.Flag):
            READ = enum.auto()
            WRITE = enum.auto()
        class Text(str, enum.Enum):
            A = "a"
        class Planet(enum.Enum):
            EARTH = (1, 2)
            def __init__(self, mass, radius): self.mass = mass; self.radius = radius
        class Unit(enum.Enum):
            def __new__(cls, value, factor):
                self = object.__new__(cls)
                self._value_, self.factor = value, factor
                return self
            METRE = ("m", 1)
        PAINT = "wet"
        def echo(value): return value
        def check(value):
            return [value[0] is Color.RED, value[0] is Color.ROUGE, value[1] is Level.LOW, value[3] is Text.A]
        def paint(color): return color.paint()
        def members(): return list(Color)
        def attributes(): return Planet.EARTH.mass, Planet.EARTH.radius, Unit.METRE.factor, Unit("m").factor
    """)
    before = {cls: state(cls) for cls in (nb.Color, nb.Level, nb.Text, nb.Planet)}
    values = [nb.Color.RED, nb.Level.LOW, nb.Mode.READ | nb.Mode.WRITE, nb.Text.A, nb.Planet.EARTH]

    result = call(nb.echo, values)

    assert all(a is b for a, b in zip(result, values, strict=True))
    assert call(nb.members) == [nb.Color.RED, nb.Color.GREEN]
    assert call(nb.check, values) == [True] * 4
    assert call(nb.attributes) == (1, 2, 1, 1)
    assert result[4].mass == 1
    nb.run("PAINT = 'dry'")
    assert result[0].paint() == call(nb.paint, result[0]) == ("RED", "dry")
    assert {cls: state(cls) for cls in before} == before


def test_a_registered_reducer_travels_with_its_class(nb, call):
    """A weak reference cannot be pickled, so only the reducer brings these back."""
    nb.run("""
        import copyreg, weakref
        class Handle:
            def __init__(self, n):
                self.n = n
                self.me = weakref.ref(self)
        def reduce_handle(handle): return Handle, (handle.n,)
        copyreg.pickle(Handle, reduce_handle)
        def same(handle): return handle.me().n, handle
        def made(n):
            class Local(Handle): pass
            copyreg.pickle(Local, lambda local: (Local, (local.n,)))
            return [Local(n)]
    """)
    try:
        number, handle = call(nb.same, nb.Handle(3))
        assert (number, type(handle), handle.n, handle.me()) == (3, nb.Handle, 3, handle)
        (local,) = call(nb.made, 4)
        assert (local.n, local.me()) == (4, local)
        assert call(nb.same, local)[0] == 4, "it is registered here, too"
        assert copyreg.dispatch_table[nb.Handle] is nb.reduce_handle
    finally:
        copyreg.dispatch_table.pop(nb.Handle, None)
        for cls in [cls for cls in copyreg.dispatch_table if cls.__name__ == "Local"]:
            copyreg.dispatch_table.pop(cls)


def test_a_class_that_the_worker_defines_comes_back_once(nb, call):
    nb.run("""
        class Base:
            def hello(self): return f"{GREETING} {self.name}"
        GREETING = "hello"
        def make(name):
            class Local(Base):
                def __init__(self, name): self.name = name
            return [Local(name), Local(name)]
    """)
    first, second = call(nb.make, "a")

    assert type(first) is type(second)
    assert isinstance(first, nb.Base)
    nb.run("GREETING = 'good bye'")
    assert first.hello() == "good bye a"


def test_a_subclass_registers_itself_once_only(nb, call):
    nb.run("""
        REGISTRY = []
        class Base:
            def __init_subclass__(cls): REGISTRY.append(cls.__name__)
        class First(Base): pass
        def names(*values): return list(REGISTRY)
        def echo(*values): return values
    """)
    assert call(nb.names, nb.First()) == ["First"]
    nb.run("class Second(Base): pass")
    value = nb.Second()

    for _ in range(2):
        assert call(nb.names, value, nb.First()) == ["First", "Second"]
        call(nb.echo, value, nb.First())
    assert nb.REGISTRY == ["First", "Second"]


def test_a_class_made_with_arguments_arrives_without_its_bases_asking_for_them_again(nb, call):
    nb.run("""
        MADE = []
        class Meta(type):
            def __new__(meta, name, bases, attributes, *, key):
                MADE.append(("meta", key))
                return super().__new__(meta, name, bases, attributes)
            def __init__(cls, name, bases, attributes, *, key): super().__init__(name, bases, attributes)
        class Base:
            def __init_subclass__(cls, *, key):
                super().__init_subclass__()
                MADE.append(("base", key))
                cls.key = key
        class C(Base, key=1): pass
        class D(metaclass=Meta, key=2): pass
        def made(*values): return MADE, values[0].key
    """)

    assert call(nb.made, nb.C(), nb.D()) == ([("base", 1), ("meta", 2)], 1)
    assert type(call(nb.D)) is nb.D


def test_a_class_registers_itself_with_a_base_that_the_worker_imports(nb, call, tmp_path, monkeypatch):
    (tmp_path / "plugins.py").write_text(
        "class Plugin:\n names = []\n def __init_subclass__(cls): Plugin.names.append(cls.__name__)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    nb.run("""
        import sys
        def add_path(path): sys.path.insert(0, path)
    """)
    call(nb.add_path, str(tmp_path))
    nb.run("""
        import plugins
        class Mine(plugins.Plugin): pass
        def names(value): return plugins.Plugin.names
    """)

    for _ in range(2):
        assert call(nb.names, nb.Mine()) == ["Mine"]


def test_changes_of_a_class_reach_the_worker(nb, call):
    nb.run("""
        class C:
            limit = 1
            def get(self): return ("first", self.limit)
        def get(c): return c.get()
        def get_by_name(): return C().get()
    """)
    assert call(nb.get, nb.C()) == call(nb.get_by_name) == ("first", 1)
    first = nb.C.get

    nb.run("C.limit = 2\nC.get = lambda self: ('second', self.limit)")
    assert call(nb.get, nb.C()) == call(nb.get_by_name) == ("second", 2)

    nb.C.limit, nb.C.get = 1, first
    assert call(nb.get_by_name) == call(nb.get, nb.C()) == ("first", 1)


# -- the client's own functions -----------------------------------------------------------------------------


def test_a_function_that_comes_back_is_the_clients_own(nb, call):
    nb.run("""
        import functools
        def helper(): return SETTING
        SETTING = 1
        class C:
            def method(self): return SETTING
        def echo(value): return value
    """)
    value = nb.C()

    helper, partial, in_a_list = call(nb.echo, (nb.helper, nb.functools.partial(nb.helper), [nb.helper]))

    assert helper is partial.func is in_a_list[0] is nb.helper
    nb.run("SETTING = 2")
    assert helper() == 2
    if sys.version_info >= (3, 11):  # where code knows its class
        assert call(nb.echo, value.method)() == 2


def test_a_function_defined_anew_is_another(nb, call):
    nb.run("def f(): return 1\ndef echo(value): return value")
    old = nb.f
    nb.run("def f(): return 2")

    back = call(nb.echo, [old, nb.f])

    assert back[1] is nb.f
    assert back[0] is not nb.f
    assert back[0]() == 1


def test_functions_are_called_as_they_were_when_submitted(nb, call):
    nb.run("def g(): return 1\ndef f(): return g()")
    first = nb.g
    assert call(nb.f) == 1

    nb.run("def g(): return 2")
    second = nb.g
    assert call(nb.f) == 2

    for function, result in [(first, 1), (second, 2), (first, 1)]:
        nb.run("def f(): return g()")
        nb._module.g = function
        assert call(nb.f) == result


def test_functions_within_data_are_those_of_the_client(nb, call):
    nb.run("""
        HANDLERS = {}
        def register(function):
            HANDLERS[function.__name__] = function
            return function
        class Handler:
            def __call__(self): return 1
        @register
        def one(): return 1
        @register
        def names(): return sorted(HANDLERS)
        def handle(name): return HANDLERS[name]()
        KINDS = {"a": Handler}
        def kind(name): return KINDS[name]()()
    """)
    assert call(nb.handle, "one") == 1
    assert call(nb.handle, "names") == ["names", "one"]
    assert call(nb.kind, "a") == 1

    nb.run("""
        @register
        def one(): return -1
        @register
        def two(): return -2  # where a hash cannot tell it from the above
        class Handler:
            def __call__(self): return 2
        KINDS = {"a": Handler}
    """)
    assert call(nb.handle, "one") == -1
    assert call(nb.names) == ["names", "one", "two"]
    assert call(nb.kind, "a") == 2

    nb.run("@register\ndef one(): return -2")
    assert call(nb.handle, "one") == -2


def test_data_that_refers_to_itself_by_way_of_functions_is_the_clients(nb, call):
    nb.run("""
        TABLE = {}
        def look(): return sorted(TABLE, key=str)
        TABLE["look"] = look
        class Box: pass
        BOX = Box()
        BOX.table = TABLE
        def by_box(): return BOX.table["look"]()
    """)
    assert call(nb.by_box) == ["look"]
    nb.run("TABLE['more'] = 1")
    assert call(nb.by_box) == ["look", "more"]
    nb.run("del TABLE['more']")
    assert call(nb.by_box) == ["look"]


@pytest.mark.parametrize(
    ("source", "argument", "result"),
    [
        ("f = lambda n: n + GLOBAL", 1, 11),
        ("def outer(k):\n def f(n): return n + k + GLOBAL\n return f\nf = outer(1)", 1, 12),
        ("def f(n): return n * f(n - 1) if n else GLOBAL", 3, 60),
        ("import functools\n@functools.lru_cache\ndef f(n): return f(n - 1) + 1 if n else GLOBAL", 300, 310),
        ("import functools\ndef g(a, b): return a - b\nf = functools.partial(g, GLOBAL)", 1, 9),
        ("import asyncio\nasync def g(n): return n + GLOBAL\ndef f(n): return asyncio.run(g(n))", 1, 11),
        ("def g(n):\n yield from (GLOBAL for _ in range(n))\ndef f(n): return list(g(n))", 2, [10, 10]),
        ("class K:\n def __call__(self, n): return n + GLOBAL\nf = K()", 1, 11),
        ("class K:\n def m(self, n): return n + GLOBAL\nf = K().m", 1, 11),
        ("class K:\n @classmethod\n def m(cls, n): return n + GLOBAL\nf = K.m", 1, 11),
        ("class K:\n @staticmethod\n def m(n): return n + GLOBAL\nf = K.m", 1, 11),
        (
            "import functools\n@functools.singledispatch\ndef f(n): return 'any'\n"
            "@f.register\ndef _(n: int): return 'int'",
            1,
            "int",
        ),
        ("import math as m\ndef f(n): return m.floor(n) + GLOBAL", 1.5, 11),
        ("import os.path\ndef f(n): return os.path.join('a', n)", "b", "a/b"),
        ("import __main__\ndef f(n): return __main__.GLOBAL + n", 1, 11),
        ("def f(n):\n import __main__\n return f.__module__, __main__.f is f", 1, ("__main__", True)),
        ("def f(n):\n class K:\n  v = n\n return K.v + GLOBAL", 1, 11),
        ("f = eval", "1 + 1", 2),
        ("f = int", "7", 7),
        ("from typing import NewType\nN = NewType('N', int)\ndef f(n: N) -> N: return N(n)", 1, 1),
        (
            "import functools\nfrom typing import *\nP, T = ParamSpec('P'), TypeVar('T')\n"
            "def d(g: Callable[P, T]) -> Callable[P, T]:\n @functools.wraps(g)\n"
            " def w(*a: P.args, **k: P.kwargs) -> T: return g(*a, **k)\n return w\n"
            "def f(n): return d(lambda x: x + GLOBAL)(n)",
            1,
            11,
        ),
        (
            "import functools\nclass K:\n def m(self, a, b): return a - b\n"
            " p = functools.partialmethod(m, GLOBAL)\ndef f(n): return K().p(n)",
            1,
            9,
        ),
        ("import logging\nlog = logging.getLogger('x')\ndef f(n): return log.name", 1, "x"),
    ],
)
def test_any_callable_of_main_works(nb, call, source, argument, result):
    nb.run("GLOBAL = 10\n" + source)

    assert call(nb.f, argument) == result


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax came with Python 3.12")
def test_types_of_the_newer_syntax_work(nb, call):
    nb.run("""
        from typing import TypeVarTuple, Unpack
        type Pair[A] = tuple[A, A]
        Ts = TypeVarTuple("Ts")
        def pair[T](x: T) -> Pair[T]: return (x, x)
        def several(*values: Unpack[Ts]) -> int: return len(values)
        class Box[T]:
            def __init__(self, x: T): self.x = x
        def box(x): return Box[int](x)
        def alias(): return Pair.__name__, Pair[int].__value__
    """)
    assert call(nb.pair, 1) == (1, 1)
    assert call(nb.several, 1, 2) == 2
    assert type(call(nb.box, 1)) is nb.Box
    assert call(nb.alias) == ("Pair", nb.Pair[int].__value__)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are evaluated at once")
def test_annotations_may_name_what_is_not_there(nb, call):
    nb.run("""
        def f(x: NotThere, y: int = 2) -> NotThere: return x + y
        class C:
            n: NotThere
            def get(self, x: NotThere) -> int: return x
        class D:
            n: int
        def by_class(): return C().get(3)
        def annotations(): return C.__annotations__, D.__annotations__, f.__annotations__["x"], f.__defaults__
    """)
    assert call(nb.f, 1) == 3
    assert call(nb.by_class) == 3
    assert type(call(nb.C)) is nb.C
    assert call(nb.annotations) == ({"n": "NotThere"}, {"n": int}, "NotThere", (2,))


def test_a_class_that_registers_itself_when_called_on_the_worker_is_the_same_in_each_task(nb, farms):
    nb.run("""
        class Count:
            instances = 0
            def __init__(self): type(self).instances += 1
        def count():
            Count()
            return Count.instances
    """)
    call = farms()

    assert [call(nb.count) for _ in range(3)] == [1, 2, 3]
    assert nb.Count.instances == 0


# -- one namespace on the worker ----------------------------------------------------------------------------


def test_what_an_initializer_sets_is_there_for_the_tasks(nb, farms):
    nb.run("""
        import sys, threading
        connection = lock = by_dict = by_module = None
        settings = {}
        class Config:
            value = 0
        def initialize(value):
            global connection, lock, undeclared
            connection, undeclared = f"connected to {value}", value + 1
            lock = threading.Lock()  # which nobody could send
            settings["value"] = value
            Config.value = value
            globals()["by_dict"] = value
            sys.modules[__name__].by_module = value
        def read(): return connection, undeclared, settings, Config.value, by_dict, by_module, lock is not None
        class Reader:
            def __call__(self): return read()
        class Result:
            def has_lock(self): return lock is not None
            def __init__(self, n): self.n = n
    """)
    call = farms(initializer=nb.initialize, initargs=(5,))
    expected = ("connected to 5", 6, {"value": 5}, 5, 5, 5, True)

    assert call(nb.read) == expected
    assert call(nb.Reader()) == expected
    nb.run("unrelated = 1\ndef another(): return connection, unrelated")
    assert call(nb.another) == ("connected to 5", 1)
    assert call(nb.read) == expected
    assert (nb.connection, nb.settings, nb.Config.value) == (None, {}, 0)


def test_the_clients_changes_count_and_others_leave_the_workers_own_alone(nb, farms):
    nb.run("""
        factor, cache, total = 1, {}, 0
        def work(n):
            global total
            total += 1
            cache[n] = n * factor
            return cache[n], sorted(cache), total
    """)
    call = farms()
    assert call(nb.work, 1) == (1, [1], 1)
    assert call(nb.work, 2) == (2, [1, 2], 2)

    nb.run("factor = 10")
    assert call(nb.work, 3) == (30, [1, 2, 3], 3)

    nb.run("cache[100] = 0")  # now the client's counts
    assert call(nb.work, 4) == (40, [4, 100], 4)
    assert nb.total == 0


def test_values_that_change_to_and_fro_are_those_of_the_submit(nb, farms):
    nb.run("""
        import numpy as np
        x = 1
        a = np.zeros(3)
        class C:
            x = 1
        def f(): return x
        g = lambda: (x, a.sum(), C.x)
        def call(function): return function()
    """)
    farm = FarmExecutor(1)
    with farm:
        futures = []
        for n in [1, 2, 1, 1, 3, 2]:
            nb._module.x = n
            nb.a[:] = n
            nb.C.x = -n
            futures += [
                farm.submit(nb.f),
                farm.submit(nb.g),
                farm.submit(nb.call, nb.f),
                farm.submit(nb.call, nb.g),
            ]
        results = [future.result(timeout=DEADLINE) for future in futures]

    expected = []
    for n in [1, 2, 1, 1, 3, 2]:
        expected += [n, (n, 3 * n, -n)] * 2
    assert results == expected


def test_a_default_that_is_the_object_of_a_global_is_so_on_the_worker(nb, farms):
    nb.run("""
        MISSING = object()
        class Missing: pass
        OTHER, number = Missing(), 0
        def default(x=MISSING): return x is MISSING
        def keyword(*, x=MISSING, y=OTHER): return x is MISSING and y is OTHER and number
        def outer(held):
            return lambda: held is OTHER and number
        closure = outer(OTHER)
        class C:
            default = MISSING
            def get(self): return self.default is MISSING and C.default is MISSING
        def by_class(): return C().get()
        def by_instance(c): return c.get()
        def by_attribute(): return by_attribute.held is MISSING
        by_attribute.held = MISSING
        functions = [default, keyword, closure, by_class, by_attribute]
        def by_function(): return [functions[0] is default, default()]
    """)
    call = farms()
    for number in (1, 1, 2, 3):
        nb.run(f"number = {number}")
        for function in [*nb.functions, *nb.functions]:
            assert call(function)
        assert call(nb.by_instance, nb.C())
        assert call(nb.by_function) == [True, True]


def test_a_default_stays_what_it_was_though_the_worker_binds_the_global_anew(nb, farms):
    nb.run("""
        text, items, number = "text", [], 0
        def change():
            global text, items
            items.append(1)
            text, items = "other", ["other"]
        def f(x=text, y=items): return x, y, text, items
        def g(x=text, y=items): return x, y, text, items, number
    """)
    call = farms()
    call(nb.change)

    for number in range(3):
        nb.run(f"number = {number}")
        assert call(nb.f) == ("text", [1], "other", ["other"])
        assert call(nb.g) == ("text", [1], "other", ["other"], number)


def test_globals_of_any_kind_are_taken_over(nb, call):
    nb.run("""
        class Proxy:
            __slots__ = ()
            __dict__ = property(lambda self: 1 / 0)
            def __eq__(self, other): raise RuntimeError
            def __reduce__(self): return Proxy, ()
        def helper(): return 1
        proxies, deep, long = [Proxy()], [], list(range(100_000))
        for _ in range(200): deep = [deep, helper]
        def f(x=proxies): return helper() + len(proxies) + len(deep) + len(long)
    """)
    for number in range(3):
        nb.proxies.append(nb.Proxy())
        nb.deep.append(number)
        nb.long.append(number)

        assert call(nb.f) == nb.f()


CHANGES = {
    "number": "number = {n}",
    "text": "number = 'text {n}'",
    "array": "numbers = numpy.full(3, {n})",
    "in the array": "numbers[1] = {n}",
    "list": "items = [{n}]",
    "in the list": "items.append({n})",
    "no list": "items = None or ()\nitems = [items]",
    "function": "def helper(x=1): return x + {n}",
    "its default": "helper.__defaults__ = ({n},)",
    "closure": "def make(held):\n def inner(): return held\n return inner\nhelper = make([{n}])",
    "class": "class C:\n value = {n}\n def get(self): return self.value, number",
    "of the class": "C.value = {n}",
    "method": "C.get = lambda self: (self.value, {n})",
    "instance": "instance = C()",
    "of the instance": "instance.value = {n}",
    "table": "table = {{'helper': helper, 'class': C}}",
    "in the table": "table['helper'] = helper",
    "enum": "class E(enum.Enum):\n A = {n}",
    "member": "instance.value = E.A.value",
    "itself": "items = [items]",
}
READERS = {
    "globals": "number, list(numbers), repr(items)",
    "helper": "helper()",
    "class": "C().get(), C.value",
    "instance": "instance.get(), instance.value",
    "table": "table['helper'](), table['class']().get()",
    "member": "E.A.value, E.A.name",
    "all": "[reader() for reader in readers]",
}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(-3, 3)), min_size=1, max_size=10),
    st.data(),
)
def test_whatever_the_client_changes_a_task_sees_what_it_was_submitted_with(nb, shared_farm, changes, data):
    """A task that changes nothing gives what the same call would have given at home, at the time of its submit."""
    nb.run("""
        import enum, numpy
        number, numbers, items = 0, numpy.zeros(3, int), []
        def helper(x=0): return x
        class C:
            value = 0
            def get(self): return self.value, number
        class E(enum.Enum):
            A = 0
        instance, table = C(), {"helper": helper, "class": C}
        readers = []
        def apply(function): return function()
    """)
    for name, expression in READERS.items():
        nb.run(f"def read_{name}(): return {expression}\nif {name!r} != 'all': readers.append(read_{name})")
    expected, futures = [], []
    for change, number in changes:
        nb.run(CHANGES[change].format(n=number))
        for name in data.draw(st.lists(st.sampled_from(sorted(READERS)), min_size=1, max_size=3)):
            reader = getattr(nb, f"read_{name}")
            expected.append(reader())
            if data.draw(st.booleans()):
                futures.append(shared_farm.submit(reader))
            else:
                futures.append(shared_farm.submit(nb.apply, reader))

    assert [future.result(timeout=DEADLINE) for future in futures] == expected


def test_a_closure_is_sent_as_it_is_at_each_submit(nb, shared_farm):
    nb.run("""
        def outer():
            held = []
            return held.append, lambda: list(held)
        append, closure = outer()
    """)
    futures = []
    for number in range(3):
        futures.append(shared_farm.submit(nb.closure))
        nb.append(number)

    assert [future.result(timeout=DEADLINE) for future in futures] == [[], [0], [0, 1]]


def test_map_calls_the_function_as_it_was_when_map_was_called(nb, shared_farm):
    nb.run("y = 1\ndef f(n): return n * y")
    results = shared_farm.map(nb.f, range(3), buffersize=1)
    nb.run("y = 100")

    assert shared_farm.submit(nb.f, 1).result(timeout=DEADLINE) == 100
    assert list(results) == [0, 1, 2]


def test_relative_imports_work_in_a_program_that_was_started_as_a_module(nb, call, tmp_path, monkeypatch):
    package = tmp_path / "the_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sibling.py").write_text("value = 7")
    nb.run("""
        __package__ = "the_package"
        import sys
        def add_path(path): sys.path.insert(0, path)
        def f():
            from . import sibling
            return sibling.value
    """)

    call(nb.add_path, str(tmp_path))

    assert call(nb.f) == 7


# -- what a function is after the round trip ----------------------------------------------------------------


def test_functions_of_one_name_and_code_stay_themselves(nb, call):
    nb.run("""
        defaults, keywords, attributes, closures = [], [], [], []
        def close_over(held):
            def f(x): return x + held
            return f
        for i in range(3):
            def f(x, i=i): return x + i
            defaults.append(f)
            def f(x, *, i=i): return x + i
            keywords.append(f)
            def f(x): return x + f.i
            f.i = i
            attributes.append(f)
            f = close_over(i)
            closures.append(f)
        def echo(value): return value
        class Holder:
            def __init__(self, *functions): self.functions = functions
    """)
    for functions in (nb.defaults, nb.keywords, nb.closures):
        nb._module.f = functions[2]
        assert [f(10) for f in call(nb.echo, functions)] == [10, 11, 12]
        assert [f(10) for f in call(nb.echo, nb.Holder(*functions)).functions] == [10, 11, 12]
        assert [call(nb.echo, f)(10) for f in functions] == [10, 11, 12]
        assert [call(f, 10) for f in functions] == [10, 11, 12]
        back = call(nb.echo, functions)
        assert [here is there for here, there in zip(functions, back, strict=True)] == [
            False,
            False,
            functions is not nb.closures,
        ]
    nb._module.f = nb.attributes[1]
    assert [f.i for f in call(nb.echo, nb.attributes)] == [0, 1, 2]


def test_a_function_that_a_name_leads_to_comes_back_as_itself_whatever_the_task_made_of_it(nb, call):
    nb.run("""
        import functools
        def keep(function):
            cache = {}
            @functools.wraps(function)
            def wrapper(n): return cache.setdefault(n, function(n))
            return wrapper
        @keep
        def kept(n): return n
        @functools.lru_cache
        def cached(n): return n
        @functools.singledispatch
        def dispatched(n): return n
        def plain(n, seen=[]): seen.append(n); return seen
        class C:
            def method(self): pass
            @staticmethod
            def static(): pass
            @classmethod
            def of_class(cls): return cls
        def use(*functions):
            for function in functions: function(1)
            plain.attribute = 1
            return functions
        def echo(value): return value
    """)
    functions = (nb.kept, nb.cached, nb.dispatched, nb.plain)

    assert all(a is b for a, b in zip(call(nb.use, *functions), functions, strict=True))
    assert vars(nb.plain) == {}
    assert nb.plain.__defaults__ == ([],)
    methods = [nb.C.method, nb.C.static]
    assert call(nb.echo, methods) == methods
    assert call(nb.echo, nb.C.of_class).__func__ is nb.C.of_class.__func__


def test_a_function_that_a_task_sends_on_comes_back_to_it_as_itself(nb):
    nb.run("""
        def echo(value): return value
        def f(): return 1
        def send_on(farm, function): return farm.submit(echo, [function]).result()[0] is function, function
        def define():
            global made
            def made(n=[]): return n
            return made
        def change():
            made.__defaults__[0].append(1)
            return made
    """)
    with FarmExecutor(2) as farm:
        assert farm.submit(nb.send_on, farm, nb.f).result(timeout=DEADLINE) == (True, nb.f)
    with FarmExecutor(1) as farm:
        first = farm.submit(nb.define).result(timeout=DEADLINE)
        second = farm.submit(nb.change).result(timeout=DEADLINE)
    assert (first(), second()) == ([], [1])


def test_one_defined_anew_while_the_task_runs_is_still_the_one_that_was_sent(nb, shared_farm, tmp_path):
    nb.run("""
        import os, time
        def f(): return "old"
        def wait_for(path, value):
            while not os.path.exists(path): time.sleep(0.01)
            return value
    """)
    old, path = nb.f, tmp_path / "now"
    futures = [shared_farm.submit(nb.wait_for, str(path), [nb.f, nb.f])]
    nb.run("def f(): return 'old'")
    path.touch()

    assert futures[0].result(timeout=DEADLINE) == [old, old]
    assert old is not nb.f
    futures = [shared_farm.submit(nb.wait_for, str(path), nb.f)]
    nb.run("f = None")
    assert futures[0].result(timeout=DEADLINE)() == "old"


def test_functions_that_share_a_variable_share_it_on_the_worker_and_back(nb, call):
    nb.run("""
        def counter():
            count = 0
            def step():
                nonlocal count
                count += 1
            def read(): return count
            return step, read
        def step_and_read(step, read):
            step()
            return step, read, read()
    """)
    step, read, seen = call(nb.step_and_read, *nb.counter())

    assert (seen, read()) == (1, 1)
    step()
    assert read() == 2


NAMESPACE_KINDS = {
    "exec'd": """
        def make(k):
            namespace = {"__name__": "plugin", "K": k}
            exec(SOURCE, namespace)
            return namespace
    """,
    "exec'd without a name": """
        def make(k):
            namespace = {"K": k}
            exec(SOURCE, namespace)
            return namespace
    """,
    "of main's name": """
        def make(k):
            namespace = {"__name__": "__main__", "K": k}
            exec(SOURCE, namespace)
            return namespace
    """,
    "other globals": """
        import types
        exec(SOURCE)
        def make(k):
            namespace = {"__name__": "__main__", "K": k, "INNER": [k]}
            namespace |= {f.__name__: types.FunctionType(f.__code__, namespace) for f in (read, change)}
            return namespace
    """,
    "module": """
        import types
        def make(k):
            module = types.ModuleType("plugin")
            module.K = k
            exec(SOURCE, vars(module))
            return vars(module)
    """,
}


@pytest.mark.parametrize("kind", NAMESPACE_KINDS)
def test_namespaces_of_one_name_stay_apart(nb, farms, kind):
    nb.run("""
        SOURCE = (
            "INNER = [K]\\n"
            "def read(): return K, INNER\\n"
            "def change(n):\\n global K\\n K = n\\n INNER.append(n)\\n"
        )
        K, INNER = "main", []
        def call_all(functions): return [function() for function in functions]
        def keep(function):
            import builtins
            builtins.kept_function = function
        def read_main(): return K
        def use_kept():
            import builtins
            return builtins.kept_function()
    """)
    nb.run(NAMESPACE_KINDS[kind])
    call = farms()
    one, two, three = (nb.make(k) for k in (1, 2, 3))

    assert call(nb.call_all, [one["read"], two["read"]]) == [(1, [1]), (2, [2])]
    assert [call(space["read"]) for space in (one, two, one)] == [(1, [1]), (2, [2]), (1, [1])]
    call(nb.keep, one["read"])
    call(two["change"], 20)  # each lives on, as the client's does
    assert [call(space["read"]) for space in (one, two, three)] == [(1, [1]), (20, [2, 20]), (3, [3])]
    assert call(nb.use_kept) == (1, [1])
    one["K"] = 10
    assert [call(space["read"]) for space in (one, two)] == [(10, [1]), (20, [2, 20])]
    assert call(nb.read_main) == "main"


def test_functions_in_data_are_told_apart_by_their_namespaces(nb, call):
    nb.run("""
        def make(k):
            namespace = {"__name__": "plugin", "K": k}
            exec("def read(): return K", namespace)
            return namespace["read"]
        TABLE = {"f": make(1)}
        def use(): return TABLE["f"]()
    """)
    assert call(nb.use) == 1
    nb.run("TABLE['f'] = make(2)")
    assert call(nb.use) == 2


def test_many_namespaces_are_not_all_kept(nb, farms):
    nb.run("""
        class Large: pass
        def make(k):
            namespace = {"__name__": "plugin", "K": k, "LARGE": Large()}
            exec("def read(_): return K, LARGE", namespace)
            return namespace["read"]
        def count():
            import gc
            gc.collect()
            return sum(isinstance(value, Large) for value in gc.get_objects())
    """)
    call = farms()
    functions = [functools.partial(nb.make(k), []) for k in range(200)]  # which is not kept itself, for its list

    assert [call(function)[0] for function in functions] == list(range(200))
    assert call(functions[0])[0] == 0
    assert call(nb.count) < 100


class Parts:
    """What a function is made of, for comparison with what came back."""

    def __init__(self, function):
        code = function.__code__
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        self.parts = (
            *(function.__name__, function.__qualname__, function.__module__, function.__doc__),
            *(function.__defaults__, function.__kwdefaults__, function.__annotations__, vars(function)),
            *(code.co_filename, code.co_firstlineno, code.co_code, code.co_consts, code.co_names, cells),
            *({name: function.__globals__.get(name) for name in code.co_names},),
        )


_VALUES = st.one_of(st.integers(0, 3), st.booleans(), st.sampled_from(["", "x", None, 1.0, (1,), (1.0,)]))
_FUNCTIONS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["f", "g", "read"]),
        "space": st.integers(0, 3),
        "default": _VALUES,
        "keyword": _VALUES,
        "closure": _VALUES,
        "attribute": _VALUES,
        "kind": st.sampled_from(["plain", "lambda", "closed", "method"]),
        "bound": st.booleans(),
    }
)
_KINDS = {
    "plain": "def {name}(a={default!r}, *, b={keyword!r}): return a, b, K",
    "lambda": "{name} = lambda a={default!r}, *, b={keyword!r}: (a, b, K)",
    "closed": (
        "def outer(held):\n def {name}(a={default!r}, *, b={keyword!r}): return a, b, held, K\n"
        " return {name}\n{name} = outer({closure!r})"
    ),
    "method": "class C:\n def {name}(a={default!r}, *, b={keyword!r}): return a, b, K\n{name} = C.{name}",
}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_FUNCTIONS, min_size=1, max_size=6), st.integers(0, 2))
def test_any_function_is_itself_after_the_round_trip_or_one_of_the_same_parts(nb, call, descriptions, holding):
    """Over all that tells functions apart: names, namespaces, defaults, closures, attributes and code."""
    nb.run("K = 'main'\ndef echo(value): return value\ndef call_all(fs): return [repr(f()) for f in fs]")
    nb.run("class Holder:\n def __init__(self, held): self.held = held")
    spaces = [nb._module.__dict__, *({"__name__": name, "K": name} for name in ("__main__", "x", "x"))]
    spaces[3]["K"] = "other"
    functions = []
    for description in descriptions:
        space = spaces[description["space"]]
        exec(compile(_KINDS[description["kind"]].format(**description), "<generated>", "exec"), space)
        function = space[description["name"]]
        function.attribute = description["attribute"]
        if not description["bound"]:
            del space[description["name"]]
        functions.append(function)
    expected, before = [repr(f()) for f in functions], [Parts(f).parts for f in functions]

    sent = [functions, nb.Holder(functions), {str(n): f for n, f in enumerate(functions)}][holding]
    back = call(nb.echo, sent)
    back = [back, getattr(back, "held", None), list(back.values()) if holding == 2 else None][holding]

    assert [repr(f()) for f in back] == expected
    assert [repr(Parts(f).parts) for f in back] == [repr(parts) for parts in before]
    assert [Parts(f).parts for f in back] == before
    assert [Parts(f).parts for f in functions] == before
    assert call(nb.call_all, functions) == expected
    assert [repr(call(f)) for f in functions] == expected
    for here, there in zip(functions, back, strict=True):
        names = [nb._module, *here.__qualname__.split(".")]
        if functools.reduce(lambda found, name: getattr(found, name, None), names) is here:
            assert there is here
        else:
            assert all(there is not other or there is here for other in functions)


_OBJECTS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["A", "B"]),
        "space": st.integers(0, 3),
        "kind": st.sampled_from(["plain", "slots", "inherited", "error", "error with slots"]),
        "value": _VALUES,
        "of_class": _VALUES,
        "bound": st.booleans(),
    }
)
_CLASSES = {
    "plain": "class {name}:\n OF_CLASS = {of_class!r}\n def __init__(self, held): self.held = held",
    "slots": (
        "class {name}:\n OF_CLASS = {of_class!r}\n __slots__ = ('held', 'unset')\n"
        " def __init__(self, held): self.held = held"
    ),
    "inherited": (
        "class Base:\n OF_CLASS = {of_class!r}\n def __init__(self, held): self.held = held\n"
        "class {name}(Base): pass"
    ),
    "error": (
        "class {name}(ValueError):\n OF_CLASS = {of_class!r}\n"
        " def __init__(self, held): super().__init__(held); self.held = held"
    ),
    "error with slots": (
        "class {name}(ValueError):\n OF_CLASS = {of_class!r}\n __slots__ = ('held', 'unset')\n"
        " def __init__(self, held): super().__init__(held); self.held = held"
    ),
}
_METHOD = "\n def told(self): return self.held, self.OF_CLASS, type(self).__name__, K"


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_OBJECTS, min_size=1, max_size=5))
def test_any_object_or_exception_is_of_its_own_class_after_the_round_trip_with_all_that_it_holds(
    nb, call, descriptions
):
    """Over all that tells classes apart: names, namespaces, attributes, bases; objects and exceptions of each."""
    nb.run("K = 'main'\ndef echo(value): return value\ndef tell(value): return value.told()\ndef fail(e): raise e")
    spaces = [nb._module.__dict__, *({"__name__": name, "K": name} for name in ("__main__", "x", "x"))]
    spaces[3]["K"] = "other"
    objects = []
    for description in descriptions:
        space = spaces[description["space"]]
        source = (_CLASSES[description["kind"]] + _METHOD).format(**description)
        if description["kind"] == "inherited":
            source = source.replace("\nclass", _METHOD + "\nclass").replace(": pass" + _METHOD, ": pass")
        exec(compile(source, "<generated>", "exec"), space)
        objects.append(space[description["name"]](description["value"]))
        if not description["bound"]:
            del space[description["name"]]
    expected = [value.told() for value in objects]

    back = call(nb.echo, objects)
    back += [call(nb.echo, value) for value in objects]
    for value in objects:
        if isinstance(value, Exception):
            with pytest.raises(type(value)) as caught:
                call(nb.fail, value)
            back.append(caught.value)

    assert [repr(call(nb.tell, value)) for value in objects] == [repr(told) for told in expected]
    for there in back:
        assert type(there) in {type(value) for value in objects}
        assert not hasattr(there, "unset")
    assert [type(there) for there in back[: len(objects)]] == [type(value) for value in objects]
    assert [repr(there.told()) for there in back[: 2 * len(objects)]] == [repr(told) for told in expected] * 2
    errors = [value for value in objects if isinstance(value, Exception)]
    assert [repr((e.args, e.told())) for e in back[2 * len(objects) :]] == [
        repr((e.args, e.told())) for e in errors
    ]


def test_code_keeps_its_file_names(nb, call):
    """Whatever cloudpickle makes of them: 3.1.3 writes ``<dynamic-code>`` for all."""
    nb.run("""
        def f():
            def inner(): return 1
            return inner
        g = lambda: f()
        class C:
            def method(self): pass
        def names():
            codes = [f.__code__, f().__code__, g.__code__, C.method.__code__]
            return [code.co_filename for code in codes]
    """)
    assert call(nb.names) == nb.names() == [f"<cell 1 of {id(nb)}>"] * 4
    assert call(lambda: lambda: 1).__code__.co_filename == __file__


# -- what a task finds by its name ---------------------------------------------------------------------------


def test_what_arrived_can_be_pickled_by_the_task(nb, farms):
    nb.run("""
        import enum, functools, typing
        class Item:
            class Inner: pass
            def __init__(self, n): self.n = n
            def method(self): return self.n
        class Color(enum.Enum):
            RED = 1
        class Pair(typing.NamedTuple):
            a: int
        def function(n): return n
        @functools.lru_cache
        def cached(n): return n
        Name = typing.NewType("Name", int)
    """)
    import pickle

    values = [nb.Item, nb.Color.RED, nb.Pair(1), nb.function, nb.cached, nb.Name, nb.Item.method, nb.Item.Inner]
    call = farms()
    for value in values:
        assert pickle.loads(call(pickle.dumps, value)) == value
    assert pickle.loads(call(pickle.dumps, nb.Item(5))).n == 5
    assert type(pickle.loads(call(pickle.dumps, nb.Item.Inner()))) is nb.Item.Inner


def test_what_is_entered_is_the_clients_newest_and_leaves_the_workers_own_alone(nb, farms):
    nb.run("""
        import pickle
        class Item:
            version = 1
        def own(): return "first"
        def rebind():
            global own
            own = len
        def version(blob): return pickle.loads(blob).version
        def find(name): return globals()[name]
    """)
    import pickle

    call, old = farms(), nb.Item()
    assert call(nb.version, pickle.dumps(old)) == 1
    nb.run("class Item:\n version = 2")
    assert call(nb.version, pickle.dumps(nb.Item())) == 2
    assert call(lambda item: item.version, old) == 1
    assert call(nb.version, pickle.dumps(nb.Item())) == 2
    assert call(nb.own) == "first"
    call(nb.rebind)
    assert call(nb.find, "own") is len


def test_names_in_annotations_are_found(nb, farms):
    nb.run("""
        from __future__ import annotations
        import dataclasses, typing
        class Engine: power = 3
        class Other: pass
        @dataclasses.dataclass
        class Car:
            engine: Engine
            others: typing.List[Car] = dataclasses.field(default_factory=list)
        def convert(x: Engine, y: typing.Dict[str, Other]) -> Car: pass
        def hints(value): return typing.get_type_hints(value)
        def hints_of_a_new_one(): return sorted(typing.get_type_hints(Car))
    """)
    expected = [nb.typing.get_type_hints(value) for value in (nb.Car, nb.convert)]

    assert [farms()(nb.hints, value) for value in (nb.Car, nb.convert)] == expected
    call = farms()
    assert call(nb.hints_of_a_new_one) == ["engine", "others"]
    old = nb.Engine
    assert call(nb.hints, nb.convert)["x"] is old
    nb.run("class Engine: power = 4")
    assert call(nb.hints, nb.convert)["x"] is nb.Engine


def test_names_that_a_task_looks_up_are_found(nb, farms):
    nb.run("""
        import pickle, sys
        class Item: pass
        def helper(): return "helped"
        def by_globals(name): return globals()[name]
        def by_module(name): return getattr(sys.modules["__main__"], name)
        def by_own_name(name): return getattr(sys.modules[__name__], name)
        def by_eval(name): return eval(name)
        def by_pickle(name): return type(pickle.loads(b"c__main__\\nItem\\n)R."))
    """)
    for look in (nb.by_globals, nb.by_module, nb.by_own_name, nb.by_eval):
        assert farms()(look, "helper") is nb.helper
    assert farms()(nb.by_pickle, "Item") is nb.Item


def test_what_may_be_looked_up_is_left_out_where_it_costs_too_much_or_cannot_be_sent(nb, farms):
    nb.run("""
        import sys
        LARGE, STREAM = "x" * 5_000_000, (n for n in "abc")
        class Large: text = LARGE
        def names_large(): return LARGE
        def look(name): return name in globals()
        def annotated(x: "Unsendable"): return x
    """)
    assert len(bytes(payload.dumps(nb.look)[0])) < 10_000
    call = farms()
    assert call(nb.look, "look") is True
    nb.run("""
        del Large, names_large
        class Unsendable: stream = STREAM
    """)
    assert call(nb.look, "annotated") is True
    assert call(nb.annotated, 1) == 1


# -- what only an import makes -------------------------------------------------------------------------------

MADE_BY_IMPORT = {
    "lock": ("threading.Lock()", "with made: pass"),
    "reentrant lock": ("threading.RLock()", "with made, made: pass"),
    "event": ("threading.Event()", "assert not made.is_set()"),
    "condition": ("threading.Condition()", "with made: made.notify_all()"),
    "semaphore": ("threading.Semaphore(2)", "with made, made: pass"),
    "bounded semaphore": ("threading.BoundedSemaphore(1)", "with made: pass"),
    "barrier": ("threading.Barrier(1)", "made.wait()"),
    "local": ("threading.local()", "made.x = 1"),
    "local of a class": ("type('Local', (threading.local,), {'x': 0})()", "assert not made.x"),
    "context variable": ("contextvars.ContextVar('v', default=[3])", "assert made.get() == [3]"),
    "without a default": ("contextvars.ContextVar('v')", "assert made.get(4) == 4"),
    "in a list": ("[threading.Lock()]", "with made[0]: pass"),
    "in a dict": ("{'a': threading.Lock()}", "with made['a']: pass"),
    "in an object": ("Service()", "with made.lock: pass"),
    "in a class": ("Service", "with made.shared: pass"),
    "queue": ("queue.Queue()", "made.put(1); assert made.get() == 1"),
}


@pytest.mark.parametrize("kind", MADE_BY_IMPORT)
def test_each_worker_has_a_fresh_one_that_its_tasks_share(nb, farms, kind):
    made, use = MADE_BY_IMPORT[kind]
    nb.run(f"""
        import contextvars, queue, threading
        class Service:
            shared = threading.Lock()
            def __init__(self): self.lock = threading.Lock()
        made = {made}
        number = 0
        def use():
            {use}
            return number, id(made)
        def other(): return number, id(made)
    """)
    call = farms()

    assert call(nb.use) == call(nb.other)
    nb.run("number = 1")
    assert call(nb.use) == call(nb.other)
    assert call(nb.use)[0] == 1


def test_a_lock_is_one_lock_wherever_the_module_holds_it(nb, farms):
    nb.run("""
        import functools, threading
        lock = threading.Lock()
        condition = threading.Condition(lock)
        class C:
            lock = lock
            def same(self): return C.lock is lock
        def synchronized(function):
            own = threading.Lock()
            @functools.wraps(function)
            def wrapper():
                with own: return function()
            wrapper.lock = own
            return wrapper
        @synchronized
        def f(held=lock, *, kept=[lock]): return held is kept[0] is lock is C.lock is condition._lock
        def holds(): return lock.locked(), f.lock.locked(), C().same()
        def give(): return holds, lock.acquire()
        def release(): lock.release()
    """)
    call = farms()

    nb.lock.acquire()
    assert call(nb.holds) == (False, False, True)
    assert call(nb.f) is True
    nb.lock.release()
    assert call(nb.give) == (nb.holds, True)  # the worker's, which is another one than the client's
    assert call(nb.holds) == (True, False, True)
    call(nb.release)
    assert not nb.lock.locked()


def test_an_argument_is_refused_and_the_error_says_what_cannot_be_sent(nb, shared_farm):
    nb.run("""
        import threading, socket
        lock = threading.Lock()
        class Service:
            def __init__(self): self.lock = threading.Lock()
        def outer(held):
            def closure(): return held
            return closure
        def f(*args): return args
        stream = (n for n in "abc")
        def by_global(): return stream
        def by_helper(): return by_global()
        def recursive(): return stream, mutual
        def mutual(): return recursive
        def by_default(x=stream): return x
        def by_keyword(*, x=stream): return x
        class C:
            def method(self): return stream
    """)

    def refused(*call):
        with pytest.raises(TypeError) as raised:
            shared_farm.submit(*call).result(timeout=DEADLINE)
        return str(raised.value).rpartition("[")[2]

    assert refused(nb.f, nb.lock) == "argument 0, of type lock, cannot be sent to a worker]"
    assert refused(nb.f, 1, nb.Service()) == "argument 1, of type Service, cannot be sent to a worker]"
    assert refused(nb.f, nb.outer(nb.lock)) == (
        "argument 0, of type function, cannot be sent to a worker, "
        "because of the variable held of outer.<locals>.closure, of type lock]"
    )
    own, because = "the function itself, of type function, cannot be sent to a worker", ", of type generator]"
    assert refused(nb.by_global) == f"{own}, because of the global stream of by_global{because}"
    assert refused(nb.by_helper) == f"{own}, because of the global stream of by_global{because}"
    assert refused(nb.mutual) == f"{own}, because of the global stream of recursive{because}"
    assert refused(nb.by_default) == f"{own}, because of a default of by_default{because}"
    assert refused(nb.by_keyword) == f"{own}, because of the default of x of by_keyword{because}"
    assert refused(nb.f, nb.by_global).endswith(f", because of the global stream of by_global{because}")
    assert refused(nb.C().method) == "the function itself, of type method, cannot be sent to a worker]"


# -- modules that exist in this process only -----------------------------------------------------------------


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    path = tmp_path / "a_plugin.py"
    path.write_text(
        textwrap.dedent("""
            import enum, threading, typing
            T = typing.TypeVar("T")
            lock, K = threading.Lock(), 2
            def f(x):
                with lock: return K * x
            def set_it(value):
                global K
                K = value
            class Base: pass
            class Item(Base):
                other: "Item"
                def __init__(self, n): self.n = n
                def get(self): return self.n * K
            class Color(enum.Enum):
                RED = 1
            class Mine(Exception): pass
            def fail(): raise Mine("it")
            def generic(x: T) -> T: return x
        """)
    )
    spec = importlib.util.spec_from_file_location("a_plugin", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "a_plugin", module)
    spec.loader.exec_module(module)
    return module


def test_what_a_plugin_defines_travels_by_value(nb, farms, plugin):
    nb.run("""
        import pickle, sys, typing
        def echo(value): return value
        def dump_and_load(value): return pickle.loads(pickle.dumps(value))
        def hints(value): return sorted(typing.get_type_hints(type(value)))
    """)
    call = farms()
    item = plugin.Item(3)

    assert call(plugin.f, 21) == 42
    assert call(plugin.generic, 1) == 1
    assert call(item.get) == 6
    values = [item, plugin.Color.RED, plugin.f, plugin.Item, plugin.Item.get, plugin.T]
    back = call(nb.echo, values)
    assert type(back[0]) is plugin.Item
    assert all(a is b for a, b in zip(back[1:], values[1:], strict=True))
    assert type(call(nb.dump_and_load, item)) is plugin.Item
    assert call(nb.hints, item) == ["other"]
    with pytest.raises(plugin.Mine, match="it"):
        call(plugin.fail)
    call(plugin.set_it, 5)
    assert call(plugin.f, 1) == 5
    assert plugin.f(1) == 2


def test_a_plugin_itself_can_be_a_global_or_an_argument(nb, farms, plugin):
    nb.run("""
        import a_plugin
        def use(): return a_plugin.f(2), a_plugin.Item(2).get(), a_plugin.K
        def echo(module): return module
        def imports():
            import a_plugin as again
            return again is a_plugin
    """)
    call = farms()

    assert call(nb.use) == (4, 4, 2)
    assert call(nb.echo, plugin) is plugin
    assert call(nb.imports) is True
    plugin.K = 3
    assert call(nb.use) == (6, 6, 3)


def test_modules_of_one_name_stay_apart(nb, farms):
    nb.run("""
        import types
        def make(k):
            module = types.ModuleType("one_name")
            module.K, module.itself = k, module
            exec("def read(): return K, itself.K", vars(module))
            return module
        one, two = make(1), make(2)
        def read(*modules): return [(module.K, module.read()) for module in modules]
        def by_global(): return one.read(), two.read()
        def echo(*values): return values
    """)
    call = farms()

    assert call(nb.read, nb.one, nb.two) == [(1, (1, 1)), (2, (2, 2))]
    assert call(nb.by_global) == ((1, 1), (2, 2))
    assert call(nb.echo, nb.two, nb.one) == (nb.two, nb.one)


# -- modules by value ---------------------------------------------------------------------------------------


@pytest.fixture
def by_value_module(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text(
        textwrap.dedent("""
            import functools
            setting = 1
            def set_it(value):
                global setting
                setting = value
            def get(): return setting
            def apply(function): return function()
            @functools.lru_cache
            def cached(n): return n + setting
            class C:
                def __init__(self, n): self.n = n
                def get(self): return self.n, setting
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_here

    cloudpickle.register_pickle_by_value(only_here)
    yield only_here
    cloudpickle.unregister_pickle_by_value(only_here)
    del sys.modules["only_here"]


def test_a_module_registered_by_value_is_one_module_on_the_worker(nb, farms, by_value_module):
    call = farms()
    nb.run("""
        import only_here
        def set_and_read(value):
            only_here.set_it(value)
            return only_here.setting, only_here.get(), only_here.C(1).get()
        def read(): return only_here.setting, only_here.get(), only_here.C(1).get()
    """)

    assert call(by_value_module.get) == 1
    assert call(by_value_module.cached, 1) == 2
    assert call(nb.set_and_read, 5) == (5, 5, (1, 5))
    assert call(nb.read) == (5, 5, (1, 5))
    by_value_module.setting = 7
    assert call(nb.read) == (7, 7, (1, 7))
    assert call(by_value_module.get) == 7


def test_what_a_module_registered_by_value_defines_comes_back_as_itself(call, by_value_module):
    value, before = by_value_module.C(1), state(by_value_module.C)

    back, function = call(by_value_module.apply, lambda: (value, by_value_module.get))

    assert type(back) is by_value_module.C
    assert function is by_value_module.get
    assert state(by_value_module.C) == before
    by_value_module.setting = 3
    assert back.get() == (1, 3)


# -- whole programs -----------------------------------------------------------------------------------------


def run_program(folder, source):
    path = folder / "program.py"
    path.write_text(textwrap.dedent(source))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)], capture_output=True, text=True, timeout=DEADLINE, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_program_without_a_guard_works_like_any_other(tmp_path):
    (tmp_path / "beside.py").write_text("def triple(n): return 3 * n")
    out = run_program(
        tmp_path,
        """
        import copyreg, enum, functools
        from dataclasses import dataclass
        import beside
        from farm_executor import FarmExecutor

        @dataclass
        class Point:
            x: int
            def scaled(self): return self.x * SCALE

        class Color(enum.Enum):
            RED = 1

        SCALE = 2
        state = None

        def initialize(value):
            global state
            state = value

        def work(point, color):
            assert color is Color.RED
            return Point(point.scaled() + state + beside.triple(1)), color

        class Mine(Exception):
            def __init__(self, code, *, hint):
                super().__init__(f"failed with {code}")
                self.code, self.hint = code, hint

        def fail(): raise Mine(3, hint=Point(1))

        copyreg._slotnames(Point)  # so that pickle need not put its cache of them into the class later
        before = dict(vars(Point))
        with FarmExecutor(2, initializer=initialize, initargs=(100,)) as farm:
            point, color = farm.submit(work, Point(1), Color.RED).result()
            assert point == Point(105) and type(point) is Point and color is Color.RED
            assert vars(Point).keys() == before.keys() and all(vars(Point)[k] is v for k, v in before.items())
            SCALE = 10
            assert point.scaled() == 1050
            assert farm.submit(work, Point(1), Color.RED).result()[0] == Point(113)
            assert list(farm.map(lambda n: n * SCALE, range(3))) == [0, 10, 20]
            error = farm.submit(fail).exception()
            assert type(error) is Mine and (error.code, error.hint) == (3, Point(1)) and type(error.hint) is Point
            assert str(error) == "failed with 3"
            assert sorted(farm.map(beside.triple, range(3), chunksize=2)) == [0, 3, 6]
            assert farm.submit(lambda f: f, work).result() is work
        print("done")
        """,
    )

    assert out == "done\n"


def test_a_program_run_by_python_c_or_from_its_standard_input_works_too():
    source = (
        "from farm_executor import FarmExecutor\n"
        "class C: pass\n"
        "def f(): return C()\n"
        "with FarmExecutor(1) as farm: print(type(farm.submit(f).result()) is C)\n"
    )
    for options in ([sys.executable, "-c", source], [sys.executable, "-"]):
        done = subprocess.run(options, input=source, capture_output=True, text=True, timeout=DEADLINE)
        assert (done.stdout, done.stderr) == ("True\n", "")


# -- calls in a row -----------------------------------------------------------------------------------------


def test_what_a_call_changes_in_its_own_object_is_gone_with_the_call(nb, call):
    nb.run("""
        import functools
        class Counter:
            count = 0
            def step(self): self.count += 1; return self.count
            def __call__(self): return self.step()
        counter = Counter()
        def append(items, item): items.append(item); return items
        partial = functools.partial(append, [])
        def outer():
            held = []
            def closure(): held.append(1); return held
            return closure, lambda: closure()
        closure, by_lambda = outer()
        method, builtin = counter.step, [1].append
    """)
    for _ in range(3):
        assert call(nb.method) == 1
        assert call(nb.counter) == 1
        assert call(nb.partial, 1) == [1]
        assert call(nb.closure) == [1]
        assert call(nb.by_lambda) == [1]
    assert nb.counter.count == 0


def test_what_a_modules_function_keeps_by_itself_lasts(nb, farms):
    nb.run("""
        import functools
        def memoized(function):
            cache = {}
            @functools.wraps(function)
            def wrapper(n):
                cache[n] = function(n)
                return sorted(cache)
            return wrapper
        @memoized
        def f(n): return n
        @functools.lru_cache
        def g(n): return len(calls.append(n) or calls)
        calls = []
        def h(n, seen=[]): seen.append(n); return seen
    """)
    call = farms()

    assert [call(nb.f, n) for n in (1, 2)] == [[1], [1, 2]]
    assert [call(nb.g, n) for n in (1, 1, 2)] == [1, 1, 2]
    assert [call(nb.h, n) for n in (1, 2)] == [[1], [1, 2]]


number, items = 5, [1]


def closures():
    number, items = 5, [1]

    def recursive(n):
        return recursive(n - 1) + number

    def holding():
        return items

    def unset():
        return never

    def counting():
        nonlocal number
        number += 1

    if not items:
        never = 1
    return {
        "of a number": (lambda: number, True),
        "of a list": (lambda: items, False),
        "of itself": (recursive, True),
        "of nothing yet": (unset, True),
        "of one that holds a list": (lambda: holding, False),
        "of one that holds a number": (lambda: recursive, True),
        "of a tuple": (lambda kept=(1, "a"): kept, True),
        "cached": (functools.lru_cache(recursive), True),
        "counting": (counting, False),
        "of one that counts": (lambda: counting(), False),
        "defining one that counts": (lambda: lambda: counting(), False),
        "partial": (functools.partial(recursive, 1), True),
        "partial of a list": (functools.partial(recursive, [1]), False),
        "partial of a keyword": (functools.partial(recursive, n=items), False),
    }


REUSABLE = {
    **closures(),
    "builtin": (len, True),
    "class": (int, True),
    "function": (run_program, True),
    "lambda of a global list": (lambda: items, True),
    "method of a list": (items.append, False),
    "slot of a list": (items.__len__, False),
    "method of a string": ("".join, True),
    "method of a class": (dict.fromkeys, True),
    "bound method": (Notebook(None).run, False),
    "callable": (operator.itemgetter(1), False),
}


@pytest.mark.parametrize("name", REUSABLE)
def test_only_what_no_call_can_change_is_used_again(name):
    function, expected = REUSABLE[name]

    assert is_reusable(function) is expected
