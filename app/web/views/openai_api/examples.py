"""The lines of OpenAI's client that create the first batch or fine-tuning job, for empty lists."""

from fastapi import Request

from app.settings import get_settings

CLIENT = """\
from openai import OpenAI

client = OpenAI(base_url="{address}/v1", api_key="YOUR_KEY")
"""
BATCH = (
    "import json\n\n"
    + CLIENT
    + """\
request = {{
    "custom_id": "1",
    "method": "POST",
    "url": "/v1/chat/completions",
    # The model is a deployment or an alias.
    "body": {{"model": "starter", "messages": [{{"role": "user", "content": "Hello"}}]}},
}}
# One request a line; each can name another model.
content = json.dumps(request).encode() + b"\\n"
file = client.files.create(file=("requests.jsonl", content), purpose="batch")
batch = client.batches.create(
    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
)
print(batch.id)
"""
)
FINE_TUNING = (
    "import json\n\n"
    + CLIENT
    + """\
row = {{
    "messages": [
        {{"role": "user", "content": "What is 2 + 3?"}},
        {{"role": "assistant", "content": "5"}},
    ]
}}
# One conversation a line; a real file has at least some hundreds.
content = json.dumps(row).encode() + b"\\n"
file = client.files.create(file=("train.jsonl", content), purpose="fine-tune")
job = client.fine_tuning.jobs.create(model="{model}", training_file=file.id)
print(job.id)
"""
)


def fill_example(example: str, request: Request) -> str:
    """Return an example with the address of this service, as the browser knows it, and a model of it."""
    # It is shown as text; of the host, only characters that end no string.
    host = "".join(each for each in request.url.netloc if each.isalnum() or each in ".-:[]_")
    model = next(iter(get_settings().openai_models), "starter")
    return example.format(address=f"{request.url.scheme}://{host}", model=model)
