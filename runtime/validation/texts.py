"""What models are asked when a probe is recorded: conversations, texts aimed at merges, passages to be forced.

Nothing here is a secret: what a validation asks is drawn from the recorded cases, and operators add passages of their
own (`reconcile probe record --passages`).
"""

from __future__ import annotations

from typing import Any, Final

from schemas.probe import ChatMessage


def _turn(role: Any, content: str) -> ChatMessage:
    return ChatMessage(role=role, content=content)


CONVERSATIONS: Final[tuple[tuple[ChatMessage, ...], ...]] = (
    (_turn("user", "Hello."),),
    (_turn("system", "Answer in one short sentence."), _turn("user", "What is the capital of France?")),
    (_turn("user", "Count: 1, 2, 3"), _turn("assistant", "4, 5, 6"), _turn("user", "Go on, please!")),
    (_turn("user", "Grüße, 世界! ¿Qué tal? 🙂\n\tdef f(x): return x**2"),),
)
"""What tokenizers and templates stumble over: a system turn, several turns, other scripts, emoji, white space, code."""

TOOLS: Final[tuple[dict[str, Any], ...]] = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather at a place.",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    },
)
TOOL_CONVERSATION: Final = (_turn("user", "What is the weather in Lima?"),)
"""Rendered with `TOOLS` where the template can."""

TEXTS: Final[tuple[str, ...]] = (
    "the there then these their them they theater other another mother smother",
    "in ing ting sting string strings interesting misinterpreting uninteresting",
    "re red read reads ready already unready reading rereading spreading",
    "tion nation national international internationalization constitutional unconstitutionally",
    "Hello HELLO hello hElLo  two  spaces   three    four\n\n\nlines\t\ttabs \r\n end ",
    "0 1 12 123 1234 12345 123456 1,234,567.89 3.14159 1e-10 0xDEADBEEF 2024-02-29T23:59:60Z",
    "it's don't I'll we've they'd can't 'quoted' \"double\" `code` --dash-- ... !!! ??? @#$%^&*()",
    "def __init__(self, *args, **kwargs): return {k: v for k, v in kwargs.items() if v is not None}",
    "äöü ÄÖÜ ß é è ê ë ñ ç ø å æ œ Ł ž ş ğ \u0131 İ \u00e9 e\u0301 \ufb01 ½ ² № ™",
    "Быстрая лиса, γρήγορη αλεπού, 敏捷的棕色狐狸, すばやい茶色の狐, 빠른 갈색 여우, الثعلب السريع, שועל חום",
    (
        "\U0001f642\U0001f643 \U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 "
        "\U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd \u200b\u200d\u00a0\u3000 \U0001f9ff"
    ),
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa abababababababab ................ ----------------",
)
"""Words that grow by one merge after the other, digits, contractions, code, scripts, joined emoji, what is invisible,
repetitions. A single swapped pair of merges shows only where both could apply: plain prose hardly ever does."""

PASSAGES: Final[tuple[str, ...]] = (
    (
        "The museum opens at nine in the morning and closes at six in the evening, except on Mondays, when "
        "it stays closed all day so that the rooms can be cleaned and the paintings looked after."
    ),
    (
        "To make bread you need flour, water, salt and yeast. Mix them well, let the dough rest for an hour "
        "in a warm place, fold it twice, and bake it until the crust is brown."
    ),
    (
        "import os\nimport sys\n\n\ndef main(arguments):\n    for name in arguments:\n        with "
        "open(name) as file:\n            print(len(file.read()))\n    return 0\n"
    ),
    (
        "Light travels at about three hundred thousand kilometres per second, so that the light of the sun "
        "needs a little more than eight minutes to reach the earth."
    ),
    (
        "Dear Ms Alvarez, thank you for your letter of the third of May. We are sorry to hear that the "
        "parcel arrived damaged and will send you another one at no cost."
    ),
    (
        "SELECT name, COUNT(*) AS orders FROM customers JOIN orders ON orders.customer = customers.id WHERE "
        "orders.year = 2021 GROUP BY name HAVING COUNT(*) > 3 ORDER BY orders DESC;"
    ),
    (
        "Once upon a time there was a king who had three daughters. The eldest loved gold, the second loved "
        "silver, and the youngest loved nothing so much as the garden behind the castle."
    ),
    (
        "Die Sitzung beginnt um zehn Uhr im Saal am Ende des Ganges. Bitte bringen Sie die Unterlagen mit, "
        "die Ihnen in der vergangenen Woche zugeschickt wurden, und melden Sie sich am Empfang an."
    ),
    (
        "If a triangle has two equal sides, then the angles opposite to them are equal as well. To prove "
        "this, draw the line from the apex to the middle of the base."
    ),
    (
        "El tren sale de la ciudad a las ocho y cuarto y llega a la costa a las doce, con una parada de diez "
        "minutos en el pueblo de la sierra, donde suben los pescadores."
    ),
    (
        '{"name": "reader", "version": "2.1.0", "dependencies": {"parser": "^4.2", "logger": "~1.0"}, '
        '"scripts": {"test": "run tests", "build": "compile all"}}'
    ),
    (
        "Water boils at one hundred degrees at sea level, but on a high mountain it boils earlier, because "
        "the pressure of the air above it is lower."
    ),
    (
        "The court found that the contract had not been signed by both parties and was therefore void; each "
        "party had to return what it had received under it."
    ),
    (
        "Le train quitte la gare vers neuf heures et traverse la plaine avant de longer la mer jusque dans "
        "la vieille ville."
    ),
    (
        "<html>\n  <head><title>List</title></head>\n  <body>\n    <ul>\n      <li>First</li>\n      "
        "<li>Second</li>\n    </ul>\n  </body>\n</html>\n"
    ),
    (
        "She put the letter back into the drawer, turned the key, and stood for a while at the window, "
        "watching the rain fall on the empty street below."
    ),
    (
        "In the first half of the year the company sold fewer cars than in the year before, but it earned "
        "more, because the cars that it did sell were more expensive."
    ),
    (
        "#include <stdio.h>\n\nint main(void) {\n    int total = 0;\n    for (int i = 1; i <= 10; i++) {\n   "
        '     total += i * i;\n    }\n    printf("%d\\n", total);\n    return 0;\n}\n'
    ),
    (
        "The patient was given two tablets in the morning and one at night. After four days the fever had "
        "gone, and she was allowed to leave the hospital."
    ),
    (
        "Q: How many legs does a spider have?\nA: Eight.\nQ: And an ant?\nA: Six.\nQ: Which of the two is an "
        "insect?\nA: The ant."
    ),
    (
        "Volcanoes are found where the plates of the earth's crust move apart or push against each other, "
        "and molten rock can find its way to the surface."
    ),
    (
        "Chapter 3. Safety. Never open the cover while the machine is running. Switch it off, wait until the "
        "drum has stopped, and pull the plug before you clean the filter."
    ),
    (
        "$ git status\nOn branch main\nYour branch is up to date with 'origin/main'.\n\nnothing to commit, "
        "working tree clean\n$ git log --oneline\n"
    ),
    (
        "The two teams played for more than two hours without a goal. In the last minute the youngest player "
        "on the field took the ball, passed three others and scored."
    ),
)
"""Prose of several kinds, in several languages, and code: the pool that validations draw from.

ASCII only: llama.cpp cannot be made to write a token that is a part of a character.
"""
