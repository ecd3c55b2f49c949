def test_what_is_posted_is_read_again(world):
    world.post(n=30)
    world.delete("post:reddit:3")
    values = world.values("raw.posts.reddit", 31)
    assert len(values) == 31
    assert {value["id"] for value in values} == {f"post:reddit:{n}" for n in range(30)}
    of_three = [value for value in values if value["id"] == "post:reddit:3"]
    assert of_three[-1]["deleted"] is True  # one key, one partition: the order stands
    assert world.sql("SELECT count(*) FROM records") == [(0,)]
