"""Chat templates are programs of strangers: each ends soon, in little memory, in a text or in one kind of error."""

import contextlib
import json
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from everlearn.chat import budget
from everlearn.chat.budget import TooMuch
from everlearn.chat.template import sandbox
from everlearn.errors import InvalidInput, Unsupported
from train.data.chat_template import ChatTemplate
from train.data.examples import Chat

MESSAGES = [
    {"role": "system", "content": "Be  brief.\nAlways."},
    {"role": "user", "content": "What is <b>x</b>?"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\n42", "tool_calls": [{"a": 1}]},
    {"role": "user", "content": "TRIGGER"},
]
TWICE = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = NEXT %}{% endfor %}"
MEGABYTE = "{% set m = ('f' * 1000) * 1000 %}"
LOOPS = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"


def doubling(start: str, following: str, use: str = "") -> str:
    return TWICE.replace("START", start).replace("NEXT", following) + use


HOSTILE = {
    "loops in loops": LOOPS,
    "a text times a number": "{{ 'x' * 10**9 }}",
    "a list times a number": "{{ [[1]] * 10**9 }}",
    "a text that doubles by +": doubling("'x'", "ns.x + ns.x"),
    "a text that doubles by ~": doubling("'x'", "ns.x ~ ns.x"),
    "a list that doubles": doubling("[1]", "ns.x + ns.x"),
    "lists of lists": doubling("[1]", "[ns.x, ns.x]", "{{ ns.x }}"),
    "tuples of tuples": doubling("[1]", "(ns.x, ns.x)", "{{ ns.x|string|length }}"),
    "dictionaries of dictionaries": doubling("{}", "{'a': ns.x, 'b': ns.x}", "{{ ns.x|tojson }}"),
    "dictionaries by call": doubling("{}", "dict(a=ns.x, b=ns.x)", "{{ ns.x }}"),
    "namespaces of namespaces": doubling("1", "namespace(a=ns.x, b=ns.x)", "{{ ns }}"),
    "lists that are compared": doubling("[[1], [1]]", "[[ns.x[0], ns.x[0]], [ns.x[1], ns.x[1]]]", "{{ ns.x[0] == ns.x[1] }}"),
    "a number that squares": doubling("3", "ns.x * ns.x"),
    "a power": "{{ 9 ** 9999999 }}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "calls in calls": "{% macro f(n) %}{% call f(n + 1) %}{{ caller() }}{% endcall %}{% endmacro %}{{ f(1) }}",
    "a loop that calls itself": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "padding by %": "{{ '%1000000000d' % 1 }}",
    "padding by % and a number": "{{ '%*d' % (1000000000, 1) }}",
    "padding by a filter": "{{ '%1000000000d'|format(1) }}",
    "padding by format": "{{ '{:1000000000}'.format(1) }}",
    "padding by format and a number": "{{ '{:{}}'.format(1, 1000000000) }}",
    "padding by a method": "{{ 'x'.ljust(1000000000) }}",
    "a format that repeats": "{{ ('%(a)s' * 100000) % {'a': 'x' * 1000000} }}",
    "a join": "{{ range(100000)|join('x' * 1000000) }}",
    "a join by method": "{{ ('x' * 1000000).join(range(100000)|map('string')) }}",
    "one thing many times": "{{ range(100000)|map(attribute='zz', default='x' * 1000000)|list }}",
    "a replacement": "{{ ('x' * 1000000)|replace('x', 'y' * 1000000) }}",
    "a replacement by method": "{{ ('x' * 1000000).replace('', 'y' * 1000000) }}",
    "indentation": "{{ ('x\n' * 100000)|indent(1000000) }}",
    "indented JSON": "{{ [[1]]|tojson(indent=1000000000) }}",
    "JSON far apart": "{{ range(100)|list|tojson(separators=('x' * 300000, ':')) }}",
    "another JSON encoder": "{{ 600000000|tojson(cls=namespace, encode='x'.center)|length }}",
    "padding by % and a name": "{{ '%(a)1000000000d' % {'a': 1} }}",
    "padding by % and a nested name": "{{ '%((a)b)1000000000d' % {'(a)b': 1} }}",
    "padding by a filter and a name": "{{ '%(a)1000000000d'|format(a=1) }}",
    "rounding to a power": "{{ 5|round(-1000000000) }}",
    "rounding up to a power": "{{ 1.5|round(1000000000, 'ceil') }}",
    "a number in another base": MEGABYTE + "{{ (m|int(0, 16)) // ((m[1:999999])|int(0, 16)) % 7 }}",
    "a number in the source": "{{ 0x" + "f" * 500000 + " // 0x" + "f" * 250000 + " }}",
    "ends that are sought in a long text": MEGABYTE + "{{ m|trim('e' * 300000 ~ 'f')|length }}",
    "ends that a method seeks": MEGABYTE + "{{ m.strip('e' * 300000 ~ 'f')|length }}",
    "a search from the end": MEGABYTE + "{{ m.rfind('fe' ~ m[:500000]) }}",
    "an encoding": "{{ 'x'.encode('punycode') }}",
    "a range": "{{ range(10**9)|list }}",
    "a sum of lists": "{{ range(100)|map('string')|map('list')|sum(start=[]) }}",
    "a block that is kept": "{% set x %}{% for i in range(100000) %}{{ 'x' * 100000 }}{% endfor %}{% endset %}",
    "output": "{% for i in range(100000) %}{{ 'x' * 100000 }}{% endfor %}",
    "a translation": "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "lists that grow": "{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = ns.x + range(9999)|list %}{% endfor %}",
    "slices": "{% for i in range(100000) %}{% set x = ('x' * 1000000)[1:] %}{% endfor %}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "a long source": "{# " + "x" * 2_000_000 + " #}",
}  # fmt: skip


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "CPU_LIMIT_S", 0.2)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_without_end_or_measure_is_stopped(name: str) -> None:
    start_s = time.thread_time()
    with pytest.raises(TemplateError):
        sandbox().from_string(HOSTILE[name]).render(messages=MESSAGES)
    assert time.thread_time() - start_s < 3  # one large operation may be under way


def test_all_of_them_together_stay_in_little_memory() -> None:
    """In a process of its own that may have 1 GiB."""
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))\n"
        "from everlearn.chat import budget; budget.CPU_LIMIT_S = 0.1\n"
        "from everlearn.chat.template import sandbox; from jinja2 import TemplateError\n"
        "import json, sys\n"
        "for source in json.load(sys.stdin):\n"
        "    try: sandbox().from_string(source).render(messages=[])\n"
        "    except TemplateError as error: assert 'memory' not in str(error), source\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(list(HOSTILE.values())),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


INNOCENT = [
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% if not loop.last %}\n{% endif %}{% endfor %}",
    "{% for m in messages[::-1] %}{{ (messages|length - 1) - loop.index0 }}{{ loop.length }}{{ loop.revindex }}{% endfor %}",
    "{% set ns = namespace(found=false, s='') %}{% for m in messages %}{% set ns.s = ns.s + m.content ~ m['role'] %}{% endfor %}{{ ns.s }}",
    "{{ messages[2].content.split('</think>')[-1].lstrip('\n') }}{{ messages | tojson }}{{ messages|tojson(indent=4) }}{{ messages|tojson(separators=(',', ':'), sort_keys=true) }}",
    "{% for m in messages if m.role in ('user', 'tool') %}{{ m.content.replace('?', '!') | upper }}{% else %}none{% endfor %}",
    "{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|join(', ') }}{{ messages|map(attribute='role')|unique|list }}",
    "{% macro show(m, depth=0) %}{{ '  ' * depth }}{{ m.role | title }}: {{ m.content | indent(2) }}{% endmacro %}{% for m in messages %}{{ show(m, loop.index) }}{% endfor %}",
    "{{ '%s and %05d' % ('a', 7) }}{{ '%(a)s of 2024' % {'a': 1} }}{{ 2.567|round(1) }}{{ '0x1f'|int(0, 16) }}{{ 'x{}y{:>4}'.format(1, 2) }}{{ 2 ** 10 + 7 % 4 - 1 }}{{ ['a'] + ['b'] }}{{ 'ab' * 3 }}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{% for k, v in messages[0]|dictsort %}{{ k }}{% endfor %}",
    "{{ missing is defined }}{{ missing or 'd' }}{{ missing|default('e') }}{{ messages is iterable }}{{ messages[0].content is string }}",
    "{% filter upper %}{{ messages[0].role }}{% endfilter %}{% set block %}{% for m in messages %}{{ m.role[0] }}{% endfor %}{% endset %}{{ block }}",
    "{% for x in [1, [2, 3]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}{{ range(3)|list }}{{ [3, 1]|sort|first }}",
]  # fmt: skip


@pytest.mark.parametrize("source", INNOCENT)
def test_a_template_of_good_manners_writes_what_jinja_writes(source: str) -> None:
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    plain.filters["tojson"] = json.dumps
    assert sandbox().from_string(source).render(messages=MESSAGES) == plain.from_string(source).render(
        messages=MESSAGES
    )


@pytest.mark.usefixtures("hurried")
def test_a_template_that_loops_on_one_message_only_fails_that_one() -> None:
    source = (
        "{% for m in messages %}{{ m.content }}{% if m.content == 'TRIGGER' %}"
        + LOOPS
        + "{% endif %}{% endfor %}"
    )
    template = sandbox().from_string(source)
    assert template.render(messages=MESSAGES[:1]) == "Be  brief.\nAlways."
    with pytest.raises(TooMuch, match="loops without end"):
        template.render(messages=MESSAGES)
    training = ChatTemplate(source, [], {})
    said = [{"role": "user", "content": "TRIGGER"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(
        InvalidInput, match=r"^f\.jsonl:7: the model's chat template refuses it: .*loops without end"
    ):
        training.conversations(Chat(said, source="f.jsonl:7"))


@pytest.mark.parametrize("source", ["{% for %}", "{{ 1 }", "{{ x|nothing }}", "{{ " + "(" * 5000])
def test_a_template_that_is_none_cannot_be_trained_with(source: str) -> None:
    with pytest.raises(Unsupported, match="the model's chat template cannot be read"):
        ChatTemplate(source, [], {})


PIECES = st.sampled_from(
    ["{{ ", " }}", "{% ", " %}", "for a in messages", "endfor", "if a", "endif", "set x = ", "a", "x", "messages",
     "|", "~", "+", "*", "**", "%", "(", ")", "[", "]", "{", "}", ".", ",", ":", "'s'", "'%d'", "1", "99999", "join",
     "list", "tojson", "format", "range", "namespace", "dict", "macro f(a)", "endmacro", "f", "split", "loop", "sum",
     "map", "sort", "is", "in", "not", "recursive", "call", "block b", "self", "include 'a'", "\n", "text"]
)  # fmt: skip


@pytest.mark.usefixtures("hurried")
def test_whatever_a_template_says_it_renders_or_raises_a_template_error() -> None:
    @given(st.lists(PIECES, max_size=24).map(" ".join))
    def check(source: str) -> None:
        with contextlib.suppress(TemplateError):
            sandbox().from_string(source).render(messages=MESSAGES)

    check()
