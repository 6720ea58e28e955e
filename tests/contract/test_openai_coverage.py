"""The coverage of OpenAI's API is what the documents of this service serve."""

from openai import OpenAI

from docs.openai_coverage import GOAL, WHOLE, count_served, list_methods, list_routes


def test_nearly_all_methods_of_the_resources_that_are_meant_to_be_whole_are_served() -> None:
    client = OpenAI(api_key="unused")
    methods = [method for name in WHOLE for method in list_methods(getattr(client, name), name)]
    served, total = count_served(methods, list_routes())
    assert total > 50
    assert served / total >= GOAL


def test_a_request_of_each_kind_is_found_in_the_source_of_the_client() -> None:
    client = OpenAI(api_key="unused")
    found = {
        method.name: (method.verb, method.path)
        for name in ("files", "fine_tuning", "models", "chat")
        for method in list_methods(getattr(client, name), name)
    }
    assert found["files.list"] == ("get", "/files")
    assert found["files.delete"] == ("delete", "/files/{file_id}")
    assert found["fine_tuning.checkpoints.permissions.create"][0] == "post"
    assert found["chat.completions.parse"] == ("", "")
