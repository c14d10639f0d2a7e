import gzip
import json

import pytest

from codiemb.data import DataError, read
from codiemb.data.converters import beir, relevance_list, scored_pairs, squad, triplets
from codiemb.data.converters.squad import Answer, chunks, split_at_answer


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(conversion):
    """Query, positives and negatives of every row written, as texts."""
    found = [json.loads(line) for line in conversion.output.read_text().splitlines()]
    assert len(found) == conversion.rows
    return [(row["query"][2], *([text[2] for text in row[key]] for key in ("positives", "negatives"))) for row in found]


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out" / "rows.jsonl"


class TestScoredPairs:
    def test_quotes_are_literal_in_tsv_and_meant_in_csv(self, tmp_path, output):
        tsv = write(tmp_path / "a.tsv", 'sentence1\tsentence2\tscore\r\n"Yes", he said\tan "odd quote\t4.5\r\n')
        assert rows(scored_pairs(tsv, output)) == [('"Yes", he said', ['an "odd quote'], [])]
        csv = write(tmp_path / "a.csv", 'sentence1,sentence2,score\n"""Yes"", he said","two\nlines",4.5\n')
        assert rows(scored_pairs(csv, output)) == [('"Yes", he said', ["two\nlines"], [])]

    def test_instruction_and_score_of_both_tasks(self, tmp_path, output):
        source = write(tmp_path / "a.tsv", "sentence1\tsentence2\tscore\na\tb\t1\n")
        for task in ("sts", "pair_classification"):
            scored_pairs(source, output, task=task, instruction="compare")
            (table,) = read(output)
            assert (table.task_type, table.score_range) == (task, (1.0, 1.0))
            row = table.rows[0]
            assert row["query"]["instruction"] == row["positives"][0]["instruction"] == "compare"

    def test_columns_by_name_and_number(self, tmp_path, output):
        body = b"7\tone\t0.5\ttwo\n8\tthree\t1.5\tfour\n"
        bare = write(tmp_path / "a.txt.gz", gzip.compress(body))
        named = write(tmp_path / "b.tsv", b"\xef\xbb\xbfid\tleft\tgold\tright\n" + body)
        expected = [("one", ["two"], []), ("three", ["four"], [])]
        assert rows(scored_pairs(bare, output, columns=(2, 4, 3))) == expected
        assert rows(scored_pairs(named, output, columns=(2, 4, 3), header=True)) == expected
        assert rows(scored_pairs(named, output, columns=("left", "right", "gold"))) == expected

    @pytest.mark.parametrize(
        ("header", "columns", "message"),
        [
            ("a\tb\tc", ("a", "b", "score"), r"no column 'score'; the first line has 3: \['a', 'b', 'c'\]"),
            ("a\tb\tc", (1, 2, 4), "no column 4"),
            ("a\ta\tc", ("a", "a", "c"), "several columns are named 'a'"),
        ],
    )
    def test_columns_that_are_not_there(self, tmp_path, output, header, columns, message):
        source = write(tmp_path / "a.tsv", f"{header}\nx\ty\t1\n")
        with pytest.raises(DataError, match=message):
            scored_pairs(source, output, columns=columns)
        assert not output.exists()

    def test_what_is_left_out_is_counted(self, tmp_path, output, caplog):
        body = [
            b"a\tb\t1",
            b"a\tb\thigh",
            b"a\t \t1",
            b"a\tb",
            b"a\tb\tc\t1",
            b"a\tb\tnan",
            b"\xff\tb\t1",
            b"",
            b"c\td\t2",
        ]
        source = write(tmp_path / "a.tsv", b"\n".join([b"sentence1\tsentence2\tscore", *body]))
        conversion = scored_pairs(source, output)
        assert rows(conversion) == [("a", ["b"], []), ("c", ["d"], [])]
        assert conversion.dropped == {
            "score is not a number": 1,
            "positives[].text: empty": 1,
            "another number of fields than the first line": 2,
            "positive_scores[]: not a score": 1,
            "query.text: lone surrogate": 1,
        }
        assert f"{source}:3: left out: score is not a number" in caplog.text

    def test_broken_quoting_costs_its_row_only(self, tmp_path, output):
        source = write(tmp_path / "a.csv", 'sentence1,sentence2,score\n"a"x,b,1\nc,d,2\n"never closed,e,3\n')
        conversion = scored_pairs(source, output)
        assert rows(conversion) == [("c", ["d"], [])]
        assert sum(conversion.dropped.values()) == 2

    def test_a_long_csv_field(self, tmp_path, output):
        source = write(tmp_path / "a.csv", f"sentence1,sentence2,score\n{'长' * 200_000},b,1\n")
        assert len(rows(scored_pairs(source, output))[0][0]) == 200_000

    def test_source_and_output_that_cannot_be_used(self, tmp_path, output):
        source = write(tmp_path / "a.tsv", "sentence1\tsentence2\tscore\n")
        with pytest.raises(DataError, match=r"x.tsv: no such file"):
            scored_pairs(tmp_path / "x.tsv", output)
        with pytest.raises(DataError, match="not written, since there are no rows"):
            scored_pairs(source, output)
        with pytest.raises(DataError, match="cannot write this kind"):
            scored_pairs(source, tmp_path / "rows.xlsx")
        with pytest.raises(DataError, match="neither a TSV nor a CSV"):
            scored_pairs(write(tmp_path / "a.xml", "x"), output)
        with pytest.raises(DataError, match="empty"):
            scored_pairs(write(tmp_path / "b.tsv", ""), output)

    def test_progress(self, tmp_path, output):
        counts = []
        source = write(tmp_path / "a.tsv", "sentence1\tsentence2\tscore\n" + "a\tb\t1\n" * 2500)
        scored_pairs(source, output, progress=counts.append)
        assert counts == [1000, 1000, 500]


TRIPLETS = [("a", ["p"], ["n1", "n2"]), ("b", ["q"], [])]


class TestTriplets:
    def test_delimited(self, tmp_path, output):
        source = write(tmp_path / "a.tsv", "anchor\tpositive\tnegative_1\tnegative_2\na\tp\tn1\tn2\nb\tq\t\t\n")
        assert rows(triplets(source, output)) == TRIPLETS
        source = write(tmp_path / "b.csv", "a,p,n1,n2\nb,q,,\n")
        assert rows(triplets(source, output, header=False)) == TRIPLETS
        with pytest.raises(DataError, match=r"expected a header such as anchor, positive, negative.*--no-header"):
            triplets(source, output)

    @pytest.mark.parametrize(
        "content",
        [
            '{"anchor": "a", "positive": "p", "negative_1": "n1", "negative": "n2"}\n{"anchor": "b", "positive": "q"}',
            '[{"query": "a", "pos": ["p"], "neg": ["n1", "n2"], "id": 1}, {"query": "b", "pos": ["q"], "neg": []}]',
            '["a", "p", "n1", "n2"]\n["b", "q"]',
            '[["a", "p", "n1", "n2"], ["b", "q"]]',
        ],
    )
    def test_json(self, tmp_path, output, content):
        assert rows(triplets(write(tmp_path / "a.json", content), output)) == TRIPLETS

    def test_what_is_left_out_is_counted(self, tmp_path, output):
        bad = ['{"anchor": "a"}', '{"positive": "p"}', "7", "{", '{"anchor": "a", "positive": 5}']
        source = write(tmp_path / "a.jsonl", "\n".join([*bad, '{"anchor": "a", "positive": "p"}']))
        conversion = triplets(source, output, instruction="find")
        assert rows(conversion) == [("a", ["p"], [])]
        assert sum(conversion.dropped.values()) == 5
        assert json.loads(output.read_text())["query"] == ["find", "", "a"]

    def test_the_source_is_not_overwritten(self, tmp_path):
        source = write(tmp_path / "a.jsonl", '{"anchor": "a", "positive": "p"}')
        with pytest.raises(DataError, match="is the source itself"):
            triplets(source, source)


class TestBeir:
    @pytest.fixture
    def folder(self, tmp_path):
        corpus = [{"_id": f"d{i}", "title": "T" * (i % 2), "text": f"text {i}"} for i in range(5)]
        corpus.append({"_id": "blank", "title": "", "text": " "})
        queries = [{"_id": f"q{i}", "text": f"query {i}"} for i in range(5)]
        judged = ["q0\td1\t2", "q0\td2\t1", "q0\td3\t0", "q1\td4\t1", "q1\tgone\t1", "q2\tblank\t1", "q9\td1\t1"]
        write(tmp_path / "corpus.jsonl", "\n".join(map(json.dumps, corpus)))
        write(tmp_path / "queries.jsonl", "\n".join(map(json.dumps, queries)))
        write(tmp_path / "qrels" / "test.tsv", "\n".join(["query-id\tcorpus-id\tscore", *judged]))
        return tmp_path

    def test_all_positives_of_a_query_with_their_grades(self, folder, output):
        conversion = beir(folder, output, instruction="find")
        assert rows(conversion) == [("query 0", ["T text 1", "text 2"], []), ("query 1", ["text 4"], [])]
        first = json.loads(output.read_text().splitlines()[0])
        assert first["positive_scores"] == [2.0, 1.0]
        assert first["query"][0] == "find"
        assert first["positives"][0][0] == ""
        assert conversion.dropped == {
            "judgement: not relevant (0 or less)": 1,
            "document.text: empty": 1,
            "judgement: no good document of this id in the corpus": 2,
            "query: no positive document": 1,
            "query: not judged in this split": 2,
            "judgement: no query of this id": 1,
        }

    def test_without_titles(self, folder, output):
        assert rows(beir(folder, output, title=False))[0][1] == ["text 1", "text 2"]

    def test_the_split_is_chosen(self, folder, output):
        write(folder / "qrels" / "dev.tsv", "query-id\tcorpus-id\tscore\nq3\td0\t1\n")
        with pytest.raises(DataError, match=r"several splits in qrels; choose one with split \(--split\): dev, test"):
            beir(folder, output)
        with pytest.raises(DataError, match="no split 'train' in qrels"):
            beir(folder, output, split="train")
        assert rows(beir(folder, output, split="dev")) == [("query 3", ["text 0"], [])]

    @pytest.mark.parametrize("part", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
    def test_a_part_is_missing(self, folder, output, part):
        (folder / part).unlink()
        with pytest.raises(DataError, match=f"no {part.replace('test', '.')}|no qrels"):
            beir(folder, output)


class TestSquad:
    CONTEXT = "Bees dance. They show the way! Is it far? About 2.5 km east. The hive listens."

    def source(self, tmp_path, **question):
        question = {"question": "How far?", "answers": [{"text": "2.5 km", "answer_start": 48}], **question}
        paragraph = {"context": self.CONTEXT, "qas": [question]}
        return write(tmp_path / "a.json", json.dumps({"data": [{"title": "Bees", "paragraphs": [paragraph]}]}))

    def test_whole_paragraphs(self, tmp_path, output):
        assert rows(squad(self.source(tmp_path), output)) == [("How far?", [self.CONTEXT], [])]

    def test_chunks(self, tmp_path, output):
        conversion = squad(self.source(tmp_path), output, chunk_size=32)
        negatives = ["Bees dance. They show the way!", "The hive listens."]
        assert rows(conversion) == [("How far?", ["Is it far? About 2.5 km east."], negatives)]

    def test_answers_are_noted_each_once(self, tmp_path, output, caplog):
        answers = [
            {"text": text, "answer_start": start} for text, start in (("2.5 km", 48), ("km", 52), ("2.5 km", 48))
        ]
        squad(self.source(tmp_path, answers=answers), output)
        assert json.loads(output.read_text())["meta_data"] == {"answers": ["2.5 km", "km"]}
        assert [len(table.rows) for table in read(output)] == [1]
        assert not caplog.records
        squad(self.source(tmp_path), output.with_suffix(".parquet"))
        assert [len(table.rows) for table in read(output.with_suffix(".parquet"))] == [1]
        assert "answers are left out: parquet files have no place for meta_data" in caplog.text

    def test_a_wrong_offset_is_found_again(self, tmp_path, output):
        source = self.source(tmp_path, answers=[{"text": "2.5 km", "answer_start": 3}])
        assert rows(squad(source, output, chunk_size=32))[0][1] == ["Is it far? About 2.5 km east."]

    @pytest.mark.parametrize(
        ("question", "reason"),
        [
            ({"answers": []}, "question without an answer"),
            ({"is_impossible": True}, "question without an answer"),
            ({"answers": [{"text": "10 km", "answer_start": 0}]}, "question without an answer"),
            ({"answers": [{"text": "way! Is it", "answer_start": 26}]}, "no chunk holds the whole answer"),
            ({"question": ""}, "query.text: empty"),
        ],
    )
    def test_what_is_left_out_is_counted(self, tmp_path, output, question, reason):
        good = {"question": "What do they do?", "answers": [{"text": "dance", "answer_start": 5}]}
        content = json.loads(self.source(tmp_path, **question).read_text())
        content["data"][0]["paragraphs"][0]["qas"].append(good)
        conversion = squad(write(tmp_path / "a.json", json.dumps(content)), output, chunk_size=32)
        assert (conversion.rows, conversion.dropped) == (1, {reason: 1})

    def test_a_chunk_that_may_answer_too_is_no_negative(self):
        text = "Paris is big. London is rainy. Paris again. Rome is old."
        assert split_at_answer(text, [Answer("Paris", 0)], 14) == (
            ["Paris is big."],
            ["London is rainy.", "Rome is old."],
        )

    @pytest.mark.parametrize("size", [1, 8, 20, 1000])
    @pytest.mark.parametrize(
        "text", [CONTEXT, "他说：“走吧。”然后他走了！真的？是…", "no end at all", "Lines\nwithout\nmarks"]
    )
    def test_chunks_cover_the_text_and_hold_the_size(self, text, size):
        spans = chunks(text, size)
        assert "".join(text[start:end] for start, end in spans) == text
        sentences = [text[start:end] for start, end in chunks(text, 1)]
        assert all(end - start <= size or text[start:end] in sentences for start, end in spans)
        if size == 1 and text.startswith("他"):
            assert sentences == ["他说：“走吧。”", "然后他走了！", "真的？", "是…"]

    def test_another_structure(self, tmp_path, output):
        with pytest.raises(DataError, match="not in SQuAD's structure"):
            squad(write(tmp_path / "a.json", '{"data": [{"context": "x"}]}'), output)
        with pytest.raises(DataError, match="broken JSON"):
            squad(write(tmp_path / "a.json", '{"data": '), output)
        with pytest.raises(DataError, match="chunk_size=0"):
            squad(write(tmp_path / "a.json", "{}"), output, chunk_size=0)


class TestRelevanceList:
    LINES = ("q1\ta\t2", "q2\tx\t0", "q1\tb\t0", "q1\tc\t1", "q2\ty\t1", "q1\tb\t2", "q3\tz\t0", "q1\td\t-1")

    def source(self, tmp_path):
        return write(tmp_path / "a.tsv", "\n".join(["query\tdocument\trelevance", *self.LINES]))

    def test_lines_in_any_order_become_a_row_for_each_query(self, tmp_path, output):
        conversion = relevance_list(self.source(tmp_path), output)
        assert rows(conversion) == [("q1", ["a", "b", "c"], ["d"]), ("q2", ["y"], ["x"])]
        assert conversion.dropped == {"document repeated under its query": 1, "query: no positive document": 1}
        assert json.loads(output.read_text().splitlines()[0])["positive_scores"] == [2.0, 2.0, 1.0]

    def test_threshold_and_task(self, tmp_path, output):
        conversion = relevance_list(self.source(tmp_path), output, threshold=2, task="reranking", instruction="rank")
        assert rows(conversion) == [("q1", ["a", "b"], ["d"])]
        assert conversion.dropped["relevance between 0 and the threshold"] == 2
        (table,) = read(output)
        assert (table.task_type, table.rows[0]["query"]["instruction"]) == ("reranking", "rank")
        with pytest.raises(DataError, match="threshold=0"):
            relevance_list(self.source(tmp_path), output, threshold=0)

    def test_a_bad_document_does_not_cost_its_query(self, tmp_path, output):
        source = write(tmp_path / "a.csv", b"q,good,1\nq,\xff,0\nq,,0\n,d,1\nq,e,many\nq,other,0\n")
        conversion = relevance_list(source, output, columns=(1, 2, 3))
        assert rows(conversion) == [("q", ["good"], ["other"])]
        assert sum(conversion.dropped.values()) == 4
