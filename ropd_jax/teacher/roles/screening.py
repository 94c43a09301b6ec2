"""Which criteria of a rubric must not count, found by rules.

The verifier sees the question, one or more answers and a criterion, and nothing else. So a criterion must not do this:

    mentions     "Reaches the same total as the reference."     names a text or an author that the verifier cannot see
    undecidable  "Is more detailed than the other answers."     needs another answer, or has no words
    repeats      "The total is 42." after "States that the total is 42."     counts one thing twice

The rules are careful, because a criterion that is dropped without need costs more than one that slips through:

- A word that the question itself uses in that sense is no offence: in a question about a reference frame or about
  students, a criterion can name them. Texts between quotation marks are what an answer should contain, so they are not
  looked at.
- "Repeats" needs the same words in the same order, apart from those that only frame a statement ("states that", "the
  answer", "correctly"). Texts between quotation marks must be equal. Two criteria that differ in one number, one negation or one other word are two criteria.

English is covered best. For German, French, Spanish and Chinese there are short lists of mentions and comparisons, and
only texts of the same words count as repeats.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Sequence

from ropd_jax.types import Criterion, Rubric

MENTIONS, UNDECIDABLE, REPEATS = "mentions", "undecidable", "repeats"
REASONS = (MENTIONS, UNDECIDABLE, REPEATS)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A criterion that must not count.

    Attributes:
        criterion_id: of the criterion.
        reason: one of ``REASONS``.
        detail: the words of the criterion that show it, or the id of the criterion that it repeats.
    """

    criterion_id: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return {
            MENTIONS: f"{self.criterion_id} mentions what a grader does not see ({self.detail!r})",
            UNDECIDABLE: f"{self.criterion_id} cannot be decided from one answer ({self.detail!r})",
            REPEATS: f"{self.criterion_id} repeats {self.detail}",
        }[self.reason]


def screen(rubric: Rubric, question: str) -> tuple[Problem, ...]:
    """The criteria that must not count, each once, in the rubric's order.

    Of two criteria that repeat each other, the one with fewer points is the repetition, or else the later one.
    """
    found = {c.id: problem for c in rubric.criteria if (problem := _problem(c, question))}
    for criterion in rubric.criteria:
        if criterion.id in found:
            continue
        for other in rubric.criteria:
            if other.id != criterion.id and other.id not in found and same_content(criterion.text, other.text):
                worse = min((criterion, other), key=lambda c: (c.points, -rubric.criteria.index(c)))
                kept = other if worse is criterion else criterion
                found[worse.id] = Problem(worse.id, REPEATS, kept.id)
                if worse is criterion:
                    break
    return tuple(found[c.id] for c in rubric.criteria if c.id in found)


def explained(problems: Sequence[Problem]) -> str:
    """The problems in one sentence, for the re-ask."""
    return (
        "; ".join(map(str, problems)) + "; expected criteria that a grader can decide from the question and one answer, "
        "without any other text, and each only once"
    )


def without(rubric: Rubric, problems: Sequence[Problem]) -> Rubric | None:
    """The rubric without these criteria; None if none is left."""
    bad = {p.criterion_id for p in problems}
    kept = tuple(c for c in rubric.criteria if c.id not in bad)
    return Rubric(kept) if kept else None


def _problem(criterion: Criterion, question: str) -> Problem | None:
    if not re.search(r"\w", criterion.text):
        return Problem(criterion.id, UNDECIDABLE, criterion.text[:40])
    text, asked = _unquoted(criterion.text), _plain(question)
    for reason, rules in ((MENTIONS, _MENTIONS), (UNDECIDABLE, _COMPARISONS)):
        for pattern, excuse in rules:
            match = pattern.search(text)
            if match and not (excuse is not None and excuse.search(asked)):
                return Problem(criterion.id, reason, " ".join(match.group().split())[:80])
    return None


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("\u2019", "'")


_QUOTED = re.compile(r'"[^"\n]*"|“[^”\n]*”|«[^»\n]*»|„[^“”\n]*[“”]|「[^」\n]*」|『[^』\n]*』|`[^`\n]*`')


def _unquoted(text: str) -> str:
    """The text with everything between quotation marks or backticks removed."""
    return _plain(_QUOTED.sub(' "" ', text))


# --------------------------------------------------------------------------------------- mentions and comparisons
# Each rule: a pattern in the criterion, and a pattern in the question that excuses it (None: nothing does).

_TEXT = r"(?:answers?|solutions?|responses?|replies|reply|outputs?|completions?|explanations?|reasoning|rationales?)"
_WORK = rf"(?:final |own |original |full |correct |incorrect |worked )*(?:{_TEXT}|work(?:ing)?|attempts?|submissions?)"
_DOES = (  # what an author of an answer does
    r"(?:also |correctly |incorrectly |explicitly |clearly |must |should |does not |doesn't |did not |didn't |has |have )*"
    r"(?:answer|state|give|compute|calculate|write|mention|identif|explain|show|conclude|provide|arrive|derive|justif"
    r"|recogni[sz]e|notice|forget|omit|fail|attempt|use|find|include|make|present|demonstrate|interpret|understand"
    r"|set[s ]up|simplif|solve|reach|add|subtract|multipl|divide|recall|avoid|appl(?:y|ie)|check|verif)\w*"
)
_QUALITY = (
    r"(?:better|worse|clearer|shorter|longer|simpler|(?:more|less|as|equally) (?:detailed|concise|complete|thorough|accurate"
    r"|precise|informative|helpful|correct|explicit|readable|structured|organi[sz]ed|comprehensive|rigorous|elegant"
    r"|efficient|useful|clear|specific))"
)
_OWN = (  # the start of a criterion whose subject is the answer
    r"^(?:(?:the|this|it|answer|response|solution|reply|explanation|reasoning|text|is|are|gives|provides|offers|contains"
    r"|presents|has|an?|must|should|be|much|far|significantly|noticeably) )*"
)
_UNSEEN = rf"(?:(?:the |all |any |most |some |every |both |each )*(?:of )?(?:the )?(?:other|another|remaining) {_WORK})"
_SCHOOL = r"\b(?:students?|pupils?|learners?)\b"
_STUDENTS_WORK = rf"{_SCHOOL}\W+(?:\w+\W+){{0,6}}?(?:{_WORK}|claim|proof|essay|wrote|writes|argu|solved|code|program)"


def _rule(pattern: str, excuse: str | None = None) -> tuple[re.Pattern[str], re.Pattern[str] | None]:
    return re.compile(pattern, re.IGNORECASE), None if excuse is None else re.compile(excuse, re.IGNORECASE)


_MENTIONS = (
    # A reference, with a word that makes it an answer: "the reference answer", "references' solution".
    _rule(rf"\breferences?(?:'s?|s')? (?:final |correct |own |worked )*{_TEXT}\b", rf"\breferences? {_TEXT}\b"),
    _rule(rf"\b(?:gold(?:[- ]standard)?|exemplar|teacher) {_TEXT}\b|\bground[- ]truth\b",
          r"\b(?:gold|exemplar|ground[- ]truth|teacher)"),
    _rule(rf"\b{_TEXT} of (?:the|a|both|all|any) (?:references?|students?|teachers?)\b",
          r"\b(?:references?|students?|teachers?)\b"),
    # "the reference(s)" as something to compare with, and "Reference 2".
    _rule(r"\b(?:as|like|than|match(?:es|ing|ed)?|with|equals?|mirror(?:s|ing)?|per|follow(?:s|ing)?|in|from|by|of|to|unlike)"
          r" (?:(?:all|any|each|one|most|some|two|three|four) (?:of )?)?(?:the (?:two |three |four )?|both )references?\b"
          r"(?! (?:to|for|list|lists|section|frame|point|points|range|ranges|value|values|line|lines|level|levels|number"
          r"|numbers|material|materials|manual|book|books|works?|system|interval|intervals|guide|page|pages|table|style"
          r"|letter|class|type|types|variable|counting|count|object|objects|angle|angles|data|genome|standard|date)\b)",
          r"\breferences?\b"),
    _rule(r"\b(?:the|both|all|most) references? (?:state|give|show|use|do|does|agree|contain|include|mention|all|both)",
          r"\breferences?\b"),
    _rule(r"\breferences? (?:answer |solution |no\. ?)?#?\d+\b", r"\breferences?\b"),
    # The student and the teacher as authors.
    _rule(rf"\b(?:the|a|any|each|every|most|other|another|all|both) ?(?:other )?(?:students?|pupils?|learners?)(?:'s?|s')"
          rf" {_WORK}\b|\bstudent {_TEXT}\b", _STUDENTS_WORK),
    _rule(rf"^(?:(?:the |that the |if the |whether the )(?:student|learner|pupil)s?|student) {_DOES}|\bstudent #?\d+\b",
          _SCHOOL),
    _rule(rf"\b(?:the|a) (?:teacher|instructor|tutor)s?(?:'s?|s')? {_WORK}\b",
          r"\b(?:teacher|instructor|tutor)s?\b"),
    _rule(rf"^(?:the |that the )(?:teacher|instructor)s? {_DOES}", r"\b(?:teacher|instructor)s?\b"),
    # German, French, Spanish, Chinese.
    _rule(r"\bReferenz(?:antwort|lösung|text)(?:en)?\b|\bMuster(?:antwort|lösung)(?:en)?\b"
          r"|\b(?:wie|als|mit|zu|in|von|aus) (?:der|den|die|einer|allen|beiden) Referenz(?:en)?\b", "referenz|muster"),
    _rule(r"\b(?:Schüler|Studenten|Studierenden|Lehrer)(?:antwort|lösung)(?:en)?\b"
          r"|\b(?:Antwort|Lösung)(?:en)? (?:des|der|eines) (?:Schülers?|Schülerin|Studenten|Studierenden|Lehrers?)\b",
          "schüler|studen|studier|lehrer"),
    _rule(r"\b(?:réponses?|solutions?) de référence\b|\b(?:que|comme|à|avec) (?:la|les|une) références?\b",
          "référence"),
    _rule(r"\b(?:réponses?|solutions?) (?:de l'élève|des élèves|de l'étudiante?|des étudiants|du professeur"
          r"|de l'enseignante?)(?!\w)", "élève|étudiant|professeur|enseignant"),
    _rule(r"\b(?:respuestas?|soluci(?:ón|ones)) de referencia\b|\b(?:que|como|a|con) (?:la|las|una) referencias?\b",
          "referencia"),
    _rule(r"\b(?:respuestas?|soluci(?:ón|ones)) (?:del|de la|de los|de las) (?:estudiantes?|alumn[oa]s?|profesora?|maestr[oa])\b",
          "estudiante|alumn|profesor|maestr"),
    _rule("参考(?:答案|解答|回答)|标准答案|范例答案", "参考|标准答案|范例"),
    _rule("学生的?(?:答案|回答|解答|作答)|(?:老师|教师)的?(?:答案|回答|解答)", "学生|老师|教师"),
)  # fmt: skip

_COMPARISONS = (
    _rule(rf"\b(?:than|unlike|as|like|compared (?:to|with)|relative to|differ\w* from|match(?:es|ing)?"
          rf"|(?:agree|consistent|compar)\w* with|similar to|identical to|equal to|copied from|distinct from"
          rf"|(?:missing|absent|found|present|appear\w*) (?:in|from)) {_UNSEEN}\b", rf"\b(?:other|another) {_WORK}\b"),
    _rule(rf"{_OWN}{_QUALITY}(?: \w+){{0,3}} than (?:the )?(?:others|rest|average|usual|typical|most)\b", r"\bothers\b"),
    _rule(rf"\b(?:most|more|less|least) detailed (?:of|among|than)(?: (?:the|all))*(?:$|[.,;]| {_TEXT}\b| others\b)",
          None),
    _rule(rf"\b(?:than|to) (?:an? |the |most )?(?:average|typical|usual|median|mean|most) {_TEXT}\b", None),
    _rule(rf"\b(?:best|worst|shortest|longest|clearest|simplest|first|only|most \w+|least \w+)(?: one| {_TEXT})?"
          rf" (?:of|among|in|from)(?: all| both)?(?: of)? (?:the )?(?:given |shown |submitted |compared )?"
          r"(?:answers|responses|replies|completions|submissions|rollouts|group of answers)\b",
          r"\b(?:answers|responses|replies|submissions|choices|options)\b"),
    _rule(rf"^(?:\w+ ){{0,4}}(?:same|identical|similar|equal|different) (?:\w+ )?{_TEXT[:-1]}|results?|conclusions?|totals?|values?)"
          r" (?:as|to|from|than) (?:the |all |all the |most |most of the )?(?:others?|rest|majority)\b",
          r"\b(?:others?|rest|majority)\b"),
    _rule(r"\bmajority (?:of (?:the )?)?(?:answers|responses|replies|rollouts|students|submissions)\b"
          r"|^(?:\w+ ){0,3}(?:agrees?|consistent) with the (?:majority|consensus)(?=$|[.,;])", r"\b(?:majority|consensus)\b"),
    _rule(r"\b(?:als|wie|mit|von) (?:die|den|der|alle|allen|andere|anderen)?\s?(?:anderen|übrigen|restlichen)"
          r" (?:Antworten|Lösungen)\b"
          r"|\b(?:kürzeste|längste|beste|klarste|ausführlichste)\w*(?: Antwort)? (?:der|aller|von allen|unter den)"
          r" (?:Antworten|Lösungen)\b", "andere[nr]? (?:Antwort|Lösung)"),
    _rule(r"\b(?:que|comme|à|aux|avec) (?:les |toutes les )?autres (?:réponses|solutions)\b"
          r"|\b(?:plus|meilleure|moins)[\w ]{0,30} (?:des|de toutes les|parmi les) réponses\b", "autres? réponse"),
    _rule(r"\b(?:que|como|a|con) (?:las |todas las )?(?:otras|demás) (?:respuestas|soluciones)\b"
          r"|\b(?:más|mejor|menos)[\w ]{0,30} (?:de|entre) (?:todas )?las respuestas\b", "otras? respuesta"),
    _rule("(?:比|与|和|跟|同|较|像)(?:所有)?(?:其他|其它|别的|另一个?)[^，。,.]{0,3}(?:答案|回答|解答|回复)"
          "|(?:答案|回答|解答|回复)(?:之?中|里)?最[^，。,.]{1,4}的", "其他|其它|别的|另一"),
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------- repetitions

_FRAMING = frozenset(  # words that frame a statement and add nothing to it
    "the a A an that this is are was be being it its as answer answers response reply solution text "
    "state states stated stating say says said mention mentions mentioned mentioning give gives given giving write writes "
    "written writing name names named naming report reports reported include includes included including contain "
    "contains contained containing provide provides provided providing present presents presented presenting "
    "correctly explicitly clearly accurately properly explicit clear must should".split()
)
_NEGATIONS = frozenset({"no", "not", "never", "cannot", "none"})
_WORDS = {word: str(n) for n, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve".split())}  # fmt: skip
_TOKEN = re.compile(r"(?<![\w.)])[-+]\d[\d,]*(?:\.\d+)?|\d[\d,]*(?:\.\d+)?|[^\W\d_]+|[^\w\s]")
def same_content(a: str, b: str) -> bool:
    """Whether two criteria ask for the same thing: equal texts, or equal but for words that only frame the statement.

    >>> same_content("States that the total is 42.", "The total is stated to be 42")
    False
    >>> same_content("States that the total is 42.", "The answer gives the total as 42")
    True
    >>> same_content("Is at most 40 words long.", "Is at most 50 words long.")
    False
    """
    x, y = _content(a), _content(b)
    return bool(x) and x == y


def _content(text: str) -> list[str]:
    """The words, numbers and signs of a text that carry its content, in order."""
    text = re.sub(r"[.,;:。，；：、](?=\s|$)|\*\*", " ", _plain(text).replace("−", "-"))
    found = []
    for quoted, part in _parts(text):
        for token in _TOKEN.findall(part if quoted else re.sub(r"n't\b", " not", part)):
            word = token.casefold() if len(token) > 1 and not token.isupper() and not quoted else token
            if token[-1].isdigit():
                found.append(token.replace(",", ""))
            elif word in _NEGATIONS:
                found.append("not")
            elif quoted or word not in _FRAMING:
                plural = not quoted and len(word) > 3 and word.endswith("s") and not word.endswith("ss")
                found.append(_WORDS.get(word, word[:-1] if plural else word))
    return found


def _parts(text: str) -> list[tuple[bool, str]]:
    """The text in parts (whether it is between quotation marks, its text)."""
    parts, at = [], 0
    for match in _QUOTED.finditer(text):
        parts += [(False, text[at : match.start()]), (True, match.group()[1:-1])]
        at = match.end()
    return [*parts, (False, text[at:])]
