"""What is wrong with a tokenizer or a template: seen by exact ids alone, before any weight is looked at."""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING, Any, Final

from runtime.engines.llamacpp import LlamaCppEngine
from schemas.errors import EngineUnreachable
from tests.power import serving
from tests.power.formats import merges
from tests.power.laboratory import HONEST
from tests.power.report import Row
from tests.power.serving import Remembered
from tests.power.shape import CHAT_TEMPLATE
from tests.power.trials import Count, trials

if TYPE_CHECKING:
    from schemas.probe import ProbeDocument
    from tests.power.laboratory import LlamaCpp
    from tests.power.trials import Numbers

CHATML: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FILES: Final[dict[str, dict[str, Any]]] = {
    "no chat template (the engine's default)": {"template": None},
    "another model's chat template": {"template": CHATML},
    "chat template without the turns' ends": {"template": CHAT_TEMPLATE.replace(" + '<|end|>'", "")},
    "chat template that forgets the system turn": {
        "template": CHAT_TEMPLATE.replace("{{ '<|' + m", "{% if message['role'] != 'system' %}{{ '<|' + m").replace(
            "<|end|>' }}", "<|end|>' }}{% endif %}"
        )
    },
    "no beginning of sequence before a text": {"add_begin": False},
}
"""Files with the right weights, written otherwise."""


def tokenizer_rows(bench: LlamaCpp, document: ProbeDocument, honest: Remembered, numbers: Numbers) -> list[Row]:
    """Templates and beginnings, each asked by every validation; and merges, another fault in each trial."""
    count = numbers.faults
    rows = []
    for name, given in FILES.items():
        engine = _asked(bench, document, honest, **given)
        rows.append(Row(name, trials([engine.without_sampler()], document, bench.platform, count)))
    rows.append(Row("two merges in each other's place", _swaps(bench, document, honest, count, missing=False)))
    rows.append(Row("one merge missing", _swaps(bench, document, honest, count, missing=True)))
    return rows


def _asked(bench: LlamaCpp, document: ProbeDocument, honest: Remembered, **given: Any) -> Remembered:
    """A server's ids of everything that the probe asks for; what it answers to token ids is the honest model's."""
    engine = Remembered(LlamaCppEngine())
    engine.known = {key: value for key, value in honest.known.items() if key[0] in {"force", "greedy"}}
    with serving.llamacpp(bench.laboratory.gguf(HONEST, bench.kind, **given)) as connection:
        for case in document.spec.tokenizer:
            try:
                engine.render(connection, case.messages, **({"tools": case.tools} if case.tools else {}))
            except EngineUnreachable:
                # A template that cannot render it: nothing that it could answer would be the ids that are expected.
                engine.known["render", repr(tuple(case.messages)), repr(tuple(case.tools))] = ()
        for text in document.spec.texts:
            engine.tokenize(connection, text.text, special=text.special)
    return engine


def _swaps(bench: LlamaCpp, document: ProbeDocument, honest: Remembered, count: int, *, missing: bool) -> Count:
    """Each trial is another fault: a tokenizer is always asked all texts, and there is nothing else to draw."""
    draw = random.Random(f"merges {missing}")
    counts = []
    for number in range(count):
        tokenizer = copy.deepcopy(bench.laboratory.tokenizer)
        listed = merges(tokenizer)
        one = draw.randrange(len(listed) - 1)
        if missing:
            del listed[one]
        else:
            other = draw.randrange(len(listed))
            listed[one], listed[other] = listed[other], listed[one]
        engine = _asked(bench, document, honest, tokenizer=tokenizer).without_sampler()
        counts.append(trials([engine], document, bench.platform, 1, name=f"swap {number}"))
    tests: dict[str, int] = {}
    for item in counts:
        for test in item.tests:
            tests[test] = tests.get(test, 0) + 1
    return Count(
        trials=count,
        rejected=sum(item.rejected for item in counts),
        inconclusive=sum(item.inconclusive for item in counts),
        tokens=sorted(item.tokens for item in counts)[count // 2],
        variance=0.0,
        threshold=0.0,
        tests=tests,
    )
