"""Requests are a pure function of seed, documents, recipe and templates; templates can be edited."""

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from codiemb.curation.synthesis.grid import LENGTHS, cell
from codiemb.curation.synthesis.order import dealt
from codiemb.curation.synthesis.plan import choose, plan_rows, plan_tasks
from codiemb.curation.synthesis.recipe import QUERY_KINDS, Gates, SynthesisRecipe
from codiemb.curation.synthesis.run import prepare
from codiemb.curation.synthesis.templates import Templates, copy_templates
from codiemb.data.documents import Document
from codiemb.training.sections import RecipeError, parse_section

DOCUMENTS = [
    Document(
        f"d{number}", f"第{number}篇讲的是一座城市的历史和地理。它有{number + 2}条河流，河上有桥！人口是多少呢？", {}
    )
    for number in range(12)
]


def recipe(**changes):
    api = {"base_url": "http://localhost/v1", "model": "m"}
    return parse_section(SynthesisRecipe, {"documents": ["a.txt"], "output": "out", "api": api, **changes})


def requests(documents=DOCUMENTS, tasks=(), **changes):
    chosen = recipe(**changes)
    templates = Templates("zh")
    corpus = choose(documents, chosen)
    return [*plan_tasks(chosen, corpus, templates), *plan_rows(chosen, corpus, templates, tasks)]


def test_the_same_plan_twice_and_another_by_another_seed():
    assert requests() == requests()
    assert [one.messages for one in requests()] != [one.messages for one in requests(seed=1)]


def test_documents_that_are_added_at_the_end_change_nothing_before_them():
    first = requests(DOCUMENTS[:8], brainstorm=None)
    assert requests(brainstorm=None)[: len(first)] == first


def test_names_are_unique_and_every_document_has_its_requests():
    planned = requests(pairs={"per_document": 2})
    assert len({one.name for one in planned}) == len(planned)
    assert Counter(one.kind for one in planned) == {"tasks": 4, "queries": 12, "pairs": 24, "paraphrases": 12}


def test_every_kind_equally_often_and_every_cell_before_any_twice():
    difficulties, personas = ["easy", "hard"], ["a", "b", "c"]
    whole = len(QUERY_KINDS) * 2 * len(difficulties) * len(personas)  # lengths: at most 2 of a kind
    cells = [cell(number, QUERY_KINDS, difficulties, personas, 0) for number in range(whole)]
    assert set(Counter(one.kind for one in cells).values()) == {whole // len(QUERY_KINDS)}
    for kind in QUERY_KINDS:
        own = Counter(one for one in cells if one.kind == kind)
        assert len(own) == len(LENGTHS[kind]) * len(difficulties) * len(personas)
        assert len(set(own.values())) == 1
    for start in range(0, whole, len(QUERY_KINDS)):
        assert {one.kind for one in cells[start : start + len(QUERY_KINDS)]} == set(QUERY_KINDS)


def test_decks_differ():
    decks = {tuple(dealt("abcdefgh", 8 * deck + place, "x") for place in range(8)) for deck in range(5)}
    assert len(decks) == 5
    assert all(set(deck) == set("abcdefgh") for deck in decks)


def test_degrees_cover_the_range_evenly():
    scores = Counter(score for one in requests(pairs={"pairs": 3}) for score in one.scores)
    assert scores == dict.fromkeys([0, 1, 2, 3, 4, 5], 6)


def test_tasks_are_dealt_to_the_documents():
    planned = requests(tasks=["甲", "乙", "丙"], brainstorm=None)
    assert Counter(one.task for one in planned if one.kind == "queries") == {"甲": 4, "乙": 4, "丙": 4}


def test_limit_draws_and_short_documents_are_left_out():
    corpus = choose([*DOCUMENTS, Document("s", "短", {})], recipe(limit=5))
    assert (len(corpus.chosen), corpus.short, len(corpus.documents)) == (5, 1, 13)
    assert corpus.chosen == sorted(corpus.chosen)
    assert corpus.chosen != choose(DOCUMENTS, recipe(limit=5, seed=1)).chosen


def test_prompts_say_what_is_wanted():
    planned = requests(queries={"kinds": ["cross_lingual"], "per_document": 1, "positives": 2, "personas": ["护士"]})
    text = next(one for one in planned if one.kind == "queries").messages[-1]["content"]
    for part in ("<document>\n第0篇", "语言：英文", "护士", "2 段同样能回答", "1 段困难负例", '"positives": ["..."]'):
        assert part in text
    assert "$" not in text


@pytest.mark.parametrize("language", ["zh", "en"])
def test_shipped_templates_fill(language):
    chosen = recipe(language=language)
    corpus = choose(
        [Document("a", "The river rises in the mountains. It is 40 km long and has 3 bridges.", {})], chosen
    )
    templates = Templates(language)
    planned = [*plan_tasks(chosen, corpus, templates), *plan_rows(chosen, corpus, templates, [])]
    assert {one.kind for one in planned} == {"tasks", "queries", "pairs", "paraphrases"}
    assert not any("$" in message["content"] for one in planned for message in one.messages)


def test_edited_templates_are_used(tmp_path):
    assert len(copy_templates(tmp_path)) == 10
    path = tmp_path / "zh" / "queries.txt"
    path.write_text("=== user\n写查询，价格 $$5：$document $queries", encoding="utf-8")
    (tmp_path / "a.txt").write_text("".join(f"{one.text}\n" for one in DOCUMENTS), encoding="utf-8")
    chosen = recipe(templates=str(tmp_path), documents=[str(tmp_path / "a.txt")], brainstorm=None)
    templates, corpus = prepare(chosen)
    (message,) = next(plan_rows(chosen, corpus, templates, [])).messages
    assert message["content"].startswith("写查询，价格 $5：第0篇")
    with pytest.raises(RecipeError, match=r"is there already"):
        copy_templates(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("queries.txt", "=== user\n$document $querys", r"\$querys is no placeholder here; allowed are \$document"),
        ("queries.txt", "=== user\n$document", r"\$queries is not in it"),
        ("pairs.txt", "=== user\n$sentence $scores 5 $", r"a \$ that begins no placeholder"),
        ("pairs.txt", "hello", r"expected the line '=== system' or '=== user'"),
        ("tasks.txt", "=== system\n$documents", r"has no part '=== user'"),
        ("words.yaml", "kinds: {keyword: x}", r"general_task: missing, but required"),
        ("words.yaml", "[", r"is not YAML"),
    ],
)
def test_templates_that_do_not_fit_are_errors(tmp_path, name, text, message):
    copy_templates(tmp_path)
    (tmp_path / "zh" / name).write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        Templates("zh", tmp_path)


def test_a_missing_template_says_where_to_get_one(tmp_path):
    with pytest.raises(RecipeError, match=r"codiemb synthesize templates -o DIR"):
        Templates("en", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": None, "pairs": None, "paraphrases": None}, r"are all null"),
        ({"queries": {"query_language": "zh"}}, r"the language of the documents; expected another one"),
        ({"queries": {"kind": ["question"]}}, r"queries\.kind: unknown key .*did you mean kinds\?"),
        ({"pairs": {"scores": [5, 0]}}, r"pairs\.scores: .*expected rising numbers"),
        ({"gates": {"query_length": [9, 3]}}, r"the lower bound 9 is above the upper one 3"),
        ({"api": {"base_url": "localhost", "model": "m"}}, r"begins with http:// or https://"),
        ({"api": {"base_url": "http://a", "model": "m", "body": {"seed": 1}}}, r"seed is set by codiemb"),
        ({"tasks": ["a", " "]}, r"tasks\.1: empty"),
    ],
)
def test_faults_of_a_recipe(changes, message):
    with pytest.raises(RecipeError, match=message):
        recipe(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": {"scores": [0, 0.5]}}, r"pairs\.scores: 0\.5 has no meaning in words\.yaml"),
        ({"queries": {"query_language": "la"}}, r"words\.yaml does not know la"),
        ({"min_characters": 1000}, r"none of 12 documents has 1000"),
    ],
)
def test_faults_of_a_recipe_against_its_files(tmp_path, changes, message):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{one.text}\n" for one in DOCUMENTS), encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        prepare(recipe(documents=[str(path)], **changes))


def test_the_recipe_of_the_page():
    page = (Path(__file__).parents[2] / "docs" / "synthesis.md").read_text(encoding="utf-8")
    content = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    chosen = parse_section(SynthesisRecipe, content)
    assert (chosen.queries.per_document, chosen.api.concurrency) == (3, 16)
    defaults = Gates()
    for name in ("copied", "near_duplicate", "similar", "top_k", "negative_margin", "disagreement"):
        assert re.search(rf"`{name}`: {getattr(defaults, name):g}\b", page)
