from demo_diffusion.records.tables import markdown_table


def test_columns_come_in_the_order_of_their_appearance_or_as_given():
    rows = [{"a": "1", "b": "2"}, {"b": "3", "c": "4"}]
    assert markdown_table(rows) == "| a | b | c |\n| --- | --- | --- |\n| 1 | 2 |  |\n|  | 3 | 4 |"
    assert markdown_table(rows, ["c", "a"]).splitlines()[2:] == ["|  | 1 |", "| 4 |  |"]


def test_foreign_text_stays_in_its_cell():
    table = markdown_table([{"run|s": "a\nb | c\x1b[2J", "n": 3}])
    assert table == "| run\\|s | n |\n| --- | --- |\n| a\\nb \\| c\\x1b[2J | 3 |"
