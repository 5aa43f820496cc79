"""Chat templates: does the data's tokenizer render as a checkpoint was trained, does each text
begin and end as it should, and does content pose as markup."""

import re
from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

from palate.audit.columns import Audited
from palate.audit.findings import MAX_EXAMPLES, Example, Finding, Skipped
from palate.audit.places import place_of, share, shortened
from palate.audit.settings import AuditSettings
from palate.errors import PalateError
from palate.model.checkpoint import SIDECAR, Sidecar, read_sidecar
from palate.model.loading import load_tokenizer
from palate.model.settings import BodySettings
from palate.preferences import Message, PreferenceGroup, Response
from palate.rendering import LengthSettings, Renderer
from palate.rendering.tokens import control_tokens

ROLE_MARKERS = (
    "\n\nHuman:",
    "\n\nAssistant:",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|eot_id|>",
    "<|endoftext|>",
    "<|user|>",
    "<|assistant|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "### Instruction:",
    "### Response:",
)
"""What common transcripts and templates write before a turn; in content it is a turn that was not
parsed, or a forged one."""
_NO_LIMIT = LengthSettings(max_prompt_tokens=1 << 20, max_response_tokens=1 << 20)


@dataclass(frozen=True)
class Chat:
    """A short conversation that shows one habit of templates."""

    name: str
    prompt: tuple[Message, ...]
    answer: str


def _chat(name: str, *turns: str, answer: str = "They flap.", system: str | None = None) -> Chat:
    """Turns alternate, the user's first."""
    said = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(turns)]
    before = [] if system is None else [Message("system", system)]
    return Chat(name, (*before, *said), answer)


CANONICAL_CHATS = (
    _chat("one turn", "How do birds fly?"),
    _chat("system", "How do birds fly?", system="Be brief."),
    _chat("empty system", "How do birds fly?", system=""),
    _chat("system of white space", "How do birds fly?", system=" \n"),
    _chat("two turns", "Hello", "Hi!", "How do birds fly?"),
    _chat("three turns", "Hello", "Hi!", "Why?", "Because.", "How do birds fly?"),
    _chat("two turns with system", "Hello", "Hi!", "How do birds fly?", system="Be brief."),
    Chat("developer", (Message("developer", "Be brief."), Message("user", "Why?")), "So."),
    Chat("two user turns", (Message("user", "Hello"), Message("user", "Why?")), "So."),
    _chat("space before the prompt", "  How do birds fly?"),
    _chat("space after the prompt", "How do birds fly?  \n"),
    _chat("space before the answer", "How do birds fly?", answer="\n  They flap."),
    _chat("space after the answer", "How do birds fly?", answer="They flap. \n\n"),
    _chat("empty earlier answer", "Hello", "", "How do birds fly?"),
    _chat("lines and tabs", "def f():\n\treturn 1\n\n\nWhat is it?", answer="A\r\nfunction"),
    _chat("accents", "Où volent les oiseaux ? Größe, señor", answer="Très haut, naïve"),
    _chat("composed apart", "Cafe\u0301 \ufb01sh \uff21", answer="e\u0301"),
    _chat("other scripts", "鳥はどうやって飛ぶの？ Как?", answer="翼で飛びます。"),
    _chat("emoji", "How? 🐦🏽‍♂️", answer="👍"),
    _chat("digits and marks", "12345678 + 0.5 = ?", answer="12,345,678.5; $1 < 2 & {x}"),
    _chat("thinking tags", "Why?", answer="<think>\nHm.\n</think>\n\nSo."),
    _chat("text of markup", "What is <b>[INST]</b>?", answer="{{ message }} {% if x %}"),
)


NONE_RENDERED = "the template refuses every canonical chat"


@dataclass(frozen=True)
class Trained:
    """How a checkpoint was trained to read."""

    name: str
    renderer: Renderer
    sidecar: Sidecar


def trained_renderer(directory: Path) -> Trained:
    """Tokenizer and template of a palate checkpoint, without its weights.

    Raises PalateError when the directory has no `reward_model.json` or no usable tokenizer.
    """
    sidecar = read_sidecar(directory)
    if sidecar is None:
        raise PalateError(
            f"{directory}: no {SIDECAR} in it, so nothing says how it was trained to read; name the"
            " model directory of a palate run"
        )
    tokenizer = load_tokenizer(str(directory), directory, BodySettings())
    lengths = LengthSettings(**sidecar.lengths)
    renderer = Renderer(tokenizer, lengths, dict(sidecar.template_arguments))
    return Trained(str(directory), renderer, sidecar)


def template_findings(
    audited: Audited,
    _: AuditSettings,
    renderer: Renderer | None = None,
    trained: Trained | None = None,
) -> list[Finding | Skipped]:
    """Start, end and drift of the template, and markup in the data's content.

    Without a renderer only well-known role markers are looked for in content.
    """
    findings: list[Finding | Skipped] = []
    if renderer is None:
        findings.append(Skipped("template", "no tokenizer given: name one with --tokenizer"))
    else:
        findings += [bos_count(renderer), end_of_turn(renderer)]
        if trained is None:
            findings.append(
                Skipped("template drift", "no checkpoint given to hold the template against")
            )
        else:
            findings.append(template_drift(renderer, trained))
    return [*findings, markers_in_content(audited, renderer)]


def _rendered(renderer: Renderer) -> dict[str, tuple[int, ...] | str]:
    """Ids of every canonical chat with its answer; what the template said of those it refuses."""
    unlimited = copy(renderer)
    unlimited.lengths = _NO_LIMIT
    found: dict[str, tuple[int, ...] | str] = {}
    for chat in CANONICAL_CHATS:
        try:
            prompt_ids = unlimited.encode_prompt(chat.prompt)
            answer = Response(chat.answer)
            found[chat.name], _ = unlimited.response_ids(chat.prompt, answer, prompt_ids)
        except PalateError as error:
            found[chat.name] = str(error)
    return found


def bos_count(renderer: Renderer) -> Finding | Skipped:
    """Begin-of-text tokens in a rendered chat: models know one, and a second shifts what they say.

    A template that writes it and a tokenizer that adds it make two.
    """
    check = "begin of text"
    tokenizer = renderer.tokenizer
    token = tokenizer.bos_token or tokenizer.cls_token
    if token is None:
        return Skipped(check, "the tokenizer has no begin-of-text token")
    bos_id = tokenizer.convert_tokens_to_ids(token)
    if bos_id == renderer.end_of_turn_id:
        return Skipped(check, f"{token} ends turns as well, so it can't be counted apart")
    counts = {
        name: sum(i == bos_id for i in ids)
        for name, ids in _rendered(renderer).items()
        if not isinstance(ids, str)
    }
    if not counts:
        return Skipped(check, NONE_RENDERED)
    doubled = [name for name, count in counts.items() if count > 1]
    most = max(counts.values())
    return Finding(
        check=check,
        severity="error" if doubled else "note",
        statistic=float(most),
        threshold=1.0,
        n=len(counts),
        what=f"most begin-of-text tokens ({token}) in one canonical chat",
        message=(
            f"{len(doubled)} of {len(counts)} canonical chats have more than one {token}"
            + (
                f" (up to {most}): {', '.join(doubled[:3])}."
                if doubled
                else f"; the most is {most}."
            )
        ),
        fix="Let the chat template write it once, before the first turn." if doubled else "",
        effect=share(len(doubled), len(counts)),
    )


def end_of_turn(renderer: Renderer) -> Finding | Skipped:
    """Whether a rendered chat ends with the end-of-turn token, from which the reward is read."""
    rendered = {name: ids for name, ids in _rendered(renderer).items() if not isinstance(ids, str)}
    if not rendered:
        return Skipped("end of turn", NONE_RENDERED)
    without = [
        name for name, ids in rendered.items() if not ids or ids[-1] != renderer.end_of_turn_id
    ]
    return Finding(
        check="end of turn",
        severity="error" if without else "note",
        statistic=share(len(without), len(rendered)),
        threshold=0.0,
        n=len(rendered),
        what=f"share of canonical chats that don't end with {renderer.end_of_turn}",
        message=(
            f"{len(without)} of {len(rendered)} canonical chats don't end with"
            f" {renderer.end_of_turn}" + (f": {', '.join(without[:3])}." if without else ".")
        ),
        fix="Let the chat template end an answer with its end-of-turn token." if without else "",
        effect=share(len(without), len(rendered)),
    )


def template_drift(renderer: Renderer, trained: Trained) -> Finding:
    """Token ids of the canonical chats under this tokenizer and under the checkpoint's own."""
    ours, theirs = _rendered(renderer), _rendered(trained.renderer)
    # What both refuse, they refuse in their own words.
    compared = [n for n in ours if not isinstance(ours[n], str) or not isinstance(theirs[n], str)]
    differ = [name for name in compared if ours[name] != theirs[name]]
    now, then = renderer.fingerprint(), trained.sidecar.fingerprint
    parts = [part for part, value in now.items() if then.get(part) != value]
    own = trained.renderer.fingerprint()
    stale = [part for part, value in own.items() if then.get(part) != value]
    message = f"{len(differ)} of {len(compared)} canonical chats get other tokens"
    if differ:
        message += f" ({', '.join(differ[:4])}{', …' if len(differ) > 4 else ''})"
    message += f" than in {trained.name}"
    if parts:
        message += f"; since its training the fingerprint changed in: {', '.join(parts)}"
    if stale:
        message += f"; the checkpoint's own files changed after training in: {', '.join(stale)}"
    at_fault = bool(differ or stale)
    return Finding(
        check="template drift",
        severity="error" if at_fault else "warn" if parts else "note",
        statistic=share(len(differ), len(compared)),
        threshold=0.0,
        n=len(compared),
        what="share of canonical chats that get other token ids than the checkpoint was trained on",
        message=message + ".",
        examples=tuple(
            Example(trained.name, 0, _difference(name, ours[name], theirs[name], renderer, trained))
            for name in differ[:MAX_EXAMPLES]
        ),
        fix=(
            "Score with the checkpoint's own tokenizer and template, or train again with these."
            if at_fault or parts
            else ""
        ),
        effect=1.0 if stale else share(len(differ), len(compared)),
    )


def _difference(
    name: str,
    ours: Sequence[int] | str,
    theirs: Sequence[int] | str,
    renderer: Renderer,
    trained: Trained,
) -> str:
    """Where two renderings part, as tokens."""
    if isinstance(ours, str) or isinstance(theirs, str):
        refused, said = ("here", ours) if isinstance(ours, str) else ("there", theirs)
        return shortened(f"{name}: refused {refused} only: {said}")
    at = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    here = renderer.tokenizer.convert_ids_to_tokens(list(ours[at : at + 4]))
    there = trained.renderer.tokenizer.convert_ids_to_tokens(list(theirs[at : at + 4]))
    return shortened(f"{name}: from token {at} {here}, trained on {there}")


def markers_in_content(audited: Audited, renderer: Renderer | None = None) -> Finding:
    """Messages of the sample whose content holds the text of a control token or of a role marker.

    Palate renders a control token in content as plain text; most trainers and servers turn it into
    the token itself, so that content ends turns and begins others. A marker of a transcript is
    usually a turn that was never parsed.
    """
    known = [*ROLE_MARKERS, *(control_tokens(renderer.tokenizer) if renderer else ())]
    pattern = re.compile("|".join(map(re.escape, sorted(set(known), key=len, reverse=True))))
    num_messages = 0
    counts: Counter[str] = Counter()
    found: list[tuple[int, Example]] = []
    num_prompts = num_answers = 0
    for group in audited.sample:
        contents = _contents(group)
        num_messages += len(contents)
        for is_answer, content in contents:
            markers = pattern.findall(content)
            if markers:
                counts.update(set(markers))
                num_answers += is_answer
                num_prompts += not is_answer
                found.append((len(markers), _at_marker(group, content, markers[0])))
    num_found = num_prompts + num_answers
    named = ", ".join(f"{marker.strip()} in {count}" for marker, count in counts.most_common(5))
    sample = "" if audited.is_whole else " of the sample"
    return Finding(
        check="markers in content",
        severity="warn" if num_found else "note",
        statistic=share(num_found, num_messages),
        threshold=0.0,
        n=num_messages,
        what="share of messages that hold the text of a control token or role marker",
        message=(
            f"{num_found} of {num_messages} messages{sample} hold markup"
            + (
                f" ({num_prompts} in prompts, {num_answers} in answers): {named}."
                if num_found
                else "."
            )
        ),
        examples=tuple(e for _, e in sorted(found, key=lambda f: -f[0])[:MAX_EXAMPLES]),
        fix=(
            "Look whether these are turns that were not parsed; cut such answers before the marker."
            if num_found
            else ""
        ),
        effect=share(num_found, num_messages),
    )


def _contents(group: PreferenceGroup) -> list[tuple[bool, str]]:
    """Whether it is an answer, and the text, of each message of a group."""
    asked = [(False, message.content) for message in group.prompt]
    return asked + [(True, response.text) for response in group.responses]


def _at_marker(group: PreferenceGroup, content: str, marker: str) -> Example:
    at = content.index(marker)
    return place_of(group, f"{marker.strip()}: …{content[max(0, at - 40) : at + 80]}")
