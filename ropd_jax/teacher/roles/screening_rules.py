"""The word lists of `screening`: patterns of mentions and comparisons, and the patterns in a question that excuse them.

A rule is a pair (pattern in the criterion, pattern in the question that excuses it, or None)::

    "the student's answer"     excused by a question about something that a student wrote
    "than the other answers"   excused by a question about other answers
"""

from __future__ import annotations

import re

Rule = tuple[re.Pattern[str], re.Pattern[str] | None]


def _rule(pattern: str, excuse: str | None = None) -> Rule:
    return re.compile(pattern, re.IGNORECASE), None if excuse is None else re.compile(excuse, re.IGNORECASE)


def _words(words: str) -> str:
    """A group that matches one of the space-separated words."""
    return f"(?:{'|'.join(words.split())})"


# An answer as a text, and as a piece of work.
_TEXTS = "answers? solutions? responses? replies reply outputs? completions? explanations? reasoning rationales?"
_TEXT = _words(_TEXTS)
_WORK = r"(?:(?:final|own|original|full|correct|incorrect|worked) )*" + _words(
    f"{_TEXTS} work working attempts? submissions?"
)
_RESULT = _words(f"{_TEXTS} results? conclusions? totals? values?")
_SEVERAL = _words("answers responses replies completions submissions rollouts")
# Actions of the author of an answer.
_ADVERB = _words("also correctly incorrectly explicitly clearly must should has have does did not doesn't didn't")
_VERB = _words(
    "answer state give compute calculate write mention identif explain show conclude provide arrive derive justif "
    "recogni notice forget omit fail attempt use find include make present demonstrate interpret understand simplif "
    "solve reach add subtract multipl divide recall avoid apply applie check verif"
)
_DOES = rf"(?:{_ADVERB} )*{_VERB}\w*"
_ADJECTIVE = _words(
    "detailed concise complete thorough accurate precise informative helpful correct explicit readable structured "
    "organi[sz]ed comprehensive rigorous elegant efficient useful clear specific"
)
_QUALITY = rf"(?:better|worse|clearer|shorter|longer|simpler|(?:more|less|as|equally) {_ADJECTIVE})"
_SUPERLATIVE = rf"(?:best|worst|shortest|longest|clearest|simplest|(?:most|least) {_ADJECTIVE})"
# The start of a criterion whose subject is the answer itself.
_OWN = (
    "^(?:"
    + _words(
        "the this it answer response solution reply explanation reasoning text is are gives provides offers contains "
        "presents has an? must should be much far significantly noticeably"
    )
    + " )*"
)
_OTHER_ANSWERS = r"(?:(?:the|all|any|most|some|every|both|each|of) )*(?:other|another|remaining) " + _WORK
_STUDENTS, _TEACHERS = _words("students? pupils? learners?"), _words("teachers? instructors? tutors?")
_WRITTEN = _words("claim proof essay wrote writes argu solved code program")
# In a question: something that a student wrote.
_STUDENTS_TEXT = rf"\b{_STUDENTS}\W+(?:\w+\W+){{0,6}}?(?:{_WORK}|{_WRITTEN})"
# "the reference(s)" after one of these words is something to compare with ...
_COMPARED = _words(
    "as like than match(?:es|ing|ed)? with equals? mirror(?:s|ing)? per follow(?:s|ing)? in on from by of to unlike"
)
_THE_REFERENCES = (
    r"(?:(?:all|any|each|one|most|some|two|three|four) (?:of )?)?(?:the (?:two |three |four )?|both )references?"
)
_REFERENCE_NOUN = _words(  # ... unless one of these follows
    "to for lists? section frame points? ranges? values? lines? levels? numbers? materials? manual books? works? "
    "system intervals? guide pages? table style letter class types? variable counting count objects? angles? data "
    "genome standard date"
)

MENTIONS: tuple[Rule, ...] = (
    _rule(rf"\breferences?(?:'s?|s')? (?:(?:final|correct|own|worked) )*{_TEXT}\b", rf"\breferences? {_TEXT}\b"),
    _rule(rf"\b{_COMPARED} {_THE_REFERENCES}\b(?! {_REFERENCE_NOUN}\b)", r"\breferences?\b"),
    _rule(
        r"\b(?:the|both|all|most) references? "
        + _words("state give show use do does agree contain include mention support limit all both"),
        r"\breferences?\b",
    ),
    _rule(r"\breferences? (?:answer |solution |no\. ?)?#?\d+\b", r"\breferences?\b"),
    _rule(
        rf"\b(?:gold(?:[- ]standard)?|exemplar|teacher) {_TEXT}\b|\bground[- ]truth\b",
        r"\b(?:gold|exemplar|ground[- ]truth|teacher)",
    ),
    _rule(
        rf"\b{_TEXT} of (?:the|a|both|all|any) {_words('references? students? teachers?')}\b",
        rf"\b{_words('references? students? teachers?')}\b",
    ),
    _rule(
        rf"\b{_words('the a any each every most other another all both')} (?:other )?{_STUDENTS}(?:'s?|s')? {_WORK}\b"
        rf"|\bstudent {_TEXT}\b",
        _STUDENTS_TEXT,
    ),
    _rule(rf"^(?:(?:(?:that|if|whether) )?the {_STUDENTS}|student) {_DOES}|\bstudent #?\d+\b", rf"\b{_STUDENTS}\b"),
    _rule(rf"\b(?:the|a) {_TEACHERS}(?:'s?|s')? {_WORK}\b", rf"\b{_TEACHERS}\b"),
    _rule(rf"^(?:that )?the {_TEACHERS} {_DOES}", rf"\b{_TEACHERS}\b"),
    # German
    _rule(
        r"\b(?:Referenz(?:antwort|lösung|text)|Muster(?:antwort|lösung))(?:en)?\b"
        r"|\b(?:wie|als|mit|zu|in|von|aus) (?:der|den|die|einer|allen|beiden) Referenz(?:en)?\b",
        "referenz|muster",
    ),
    _rule(
        r"\b(?:Schüler|Studenten|Studierenden|Lehrer)(?:antwort|lösung)(?:en)?\b"
        r"|\b(?:Antwort|Lösung)(?:en)? (?:des|der|eines) (?:Schülers?|Schülerin|Studenten|Studierenden|Lehrers?)\b",
        "schüler|studen|studier|lehrer",
    ),
    # French
    _rule(
        r"\b(?:réponses?|solutions?) de référence\b|\b(?:que|comme|à|avec) (?:la|les|une) références?\b", "référence"
    ),
    _rule(
        r"\b(?:réponses?|solutions?) (?:de l'élève|des élèves|de l'étudiante?|des étudiants|du professeur"
        r"|de l'enseignante?)(?!\w)",
        "élève|étudiant|professeur|enseignant",
    ),
    # Spanish
    _rule(
        r"\b(?:respuestas?|soluci(?:ón|ones)) de referencia\b|\b(?:que|como|a|con) (?:la|las|una) referencias?\b",
        "referencia",
    ),
    _rule(
        r"\b(?:respuestas?|soluci(?:ón|ones)) (?:del|de la|de los|de las)"
        r" (?:estudiantes?|alumn[oa]s?|profesora?|maestr[oa])\b",
        "estudiante|alumn|profesor|maestr",
    ),
    # Chinese
    _rule("参考(?:答案|解答|回答)|标准答案|范例答案", "参考|标准答案|范例"),
    _rule("学生的?(?:答案|回答|解答|作答)|(?:老师|教师)的?(?:答案|回答|解答)", "学生|老师|教师"),
)

COMPARISONS: tuple[Rule, ...] = (
    _rule(
        r"\b(?:than|unlike|as|like|compared (?:to|with)|relative to|differ\w* from|match(?:es|ing)?|similar to"
        r"|(?:agree|consistent|compar)\w* with|identical to|equal to|copied from|distinct from"
        rf"|(?:missing|absent|found|present|appear\w*) (?:in|from)) {_OTHER_ANSWERS}\b",
        rf"\b(?:other|another) {_WORK}\b",
    ),
    _rule(
        rf"{_OWN}{_QUALITY}(?: \w+){{0,3}} than (?:the )?(?:others|rest|average|usual|typical|most)\b", r"\bothers\b"
    ),
    _rule(rf"\b(?:more|less) detailed than(?: (?:the|all))*(?:$|[.,;]| {_TEXT}\b| others\b)"),
    _rule(rf"\b(?:than|to) (?:an? |the |most )?(?:average|typical|usual|median|mean|most) {_TEXT}\b"),
    _rule(
        rf"\b{_SUPERLATIVE}(?: one| {_TEXT})? (?:of|among|in|from)"
        rf" (?:(?:all|both|of|the|given|shown|submitted) )*{_SEVERAL}\b",
        rf"\b(?:{_SEVERAL}|choices|options)\b",
    ),
    _rule(
        rf"^(?:\w+ ){{0,4}}(?:same|identical|similar|equal|different) (?:\w+ )?{_RESULT} (?:as|to|from|than)"
        r" (?:the |all |all the |most |most of the )?(?:others?|rest|majority)\b",
        r"\b(?:others?|rest|majority)\b",
    ),
    _rule(
        rf"\bmajority (?:of (?:the )?)?(?:{_SEVERAL}|students)\b"
        r"|^(?:\w+ ){0,3}(?:agrees?|consistent) with the (?:majority|consensus)(?=$|[.,;])",
        r"\b(?:majority|consensus)\b",
    ),
    # German
    _rule(
        r"\b(?:als|wie|mit|von) (?:(?:die|den|der|alle|allen) )?(?:anderen?|übrigen|restlichen)"
        r" (?:Antworten|Lösungen)\b"
        r"|\b(?:kürzeste|längste|beste|klarste|ausführlichste)\w*(?: Antwort)? (?:der|aller|von allen|unter den)"
        r" (?:Antworten|Lösungen)\b",
        "andere[nr]? (?:Antwort|Lösung)",
    ),
    # French
    _rule(
        r"\b(?:que|comme|à|aux|avec) (?:les |toutes les )?autres (?:réponses|solutions)\b"
        r"|\b(?:plus|meilleure|moins)[\w ]{0,30} (?:des|de toutes les|parmi les) réponses\b",
        "autres? réponse",
    ),
    # Spanish
    _rule(
        r"\b(?:que|como|a|con) (?:las |todas las )?(?:otras|demás) (?:respuestas|soluciones)\b"
        r"|\b(?:más|mejor|menos)[\w ]{0,30} (?:de|entre) (?:todas )?las respuestas\b",
        "otras? respuesta",
    ),
    # Chinese
    _rule(
        "(?:比|与|和|跟|同|较|像)(?:所有)?(?:其他|其它|别的|另一个?)[^，。,.]{0,3}(?:答案|回答|解答|回复)"
        "|(?:答案|回答|解答|回复)(?:之?中|里)?最[^，。,.]{1,4}的",
        "其他|其它|别的|另一",
    ),
)

# A criterion whose subject is the student, the author of the one answer that the verifier sees. A demand on the student
# is a demand on the answer. These patterns do not match a description of what the student lacks.
_MUST = r"(?:must|should|shall|(?:has|have|needs?|is required|are required|is expected|are expected) to)"
_ITS = r"(?:(?:final|own|original|full|complete|written|intermediate) )*"
_LACKS = (
    r"(?:(?:does|is|has|was)(?:n't| not| no| never)\b|was\b|"
    + _words("fails forgets omits misses lacks ignores")
    + r"\b)"
)
_DONE = _words(
    "answers states gives computes calculates writes mentions identifies explains shows concludes provides arrives "
    "derives justifies recognizes recognises uses finds includes makes presents demonstrates interprets simplifies "
    "solves reaches adds subtracts multiplies divides recalls avoids applies checks verifies describes follows "
    "considers names lists contains satisfies adheres"
)
_LEARNER = r"^(?:(?:the|a|each|every) )?(?:student|pupil|learner)"
_SINGULAR = r"(?:answer|solution|response|reply)"
SUBJECTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(  # (the start of a criterion, what replaces it)
    (re.compile(pattern, re.IGNORECASE), instead)
    for pattern, instead in (
        (rf"{_LEARNER}(?:'s|s'|s) ({_ITS}){_TEXT} (?={_MUST}\b)", r"The \1answer "),
        (rf"{_LEARNER}'s ({_ITS}){_SINGULAR} (?!{_LACKS})(?=[a-z]+s\b)", r"The \1answer "),
        (
            rf"{_LEARNER} (?={_MUST}\b|(?:(?:also|correctly|explicitly|clearly|accurately) )*{_DONE}\b)",
            "The answer ",
        ),
    )
)
OWN_ANSWER = re.compile(rf" in (?:their|his|her|his or her) (?:own )?{_TEXT}\b", re.IGNORECASE)
ABOUT_STUDENTS = re.compile(rf"\b{_STUDENTS}\b", re.IGNORECASE)
