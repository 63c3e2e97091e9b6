"""Tokens among the inputs: whatever is asked for and whatever goes wrong, they are in no answer, log or file."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import requests
from support.processes import Server

from backend.api.input_schema import InputSchema
from backend.core.errors import InputError
from backend.nodes.images import Outcome
from backend.nodes.result_log import Manifest
from backend.nodes.table import read_table
from modules.cli.given_inputs import with_files_read

TOKEN = "hf_NobodyMayReadThis"
INPUTS: dict[str, Any] = {
    "prompt": "a portrait of a man",
    "num_inference_steps": 1,
    "megapixels": "0.25",
    "adetailer": False,
    "scale": 1,
    "hf_api_token": TOKEN,
    "civitai_api_token": f"{TOKEN}-2",
}
WRONG: dict[str, dict[str, Any]] = {
    "a file that is not there": {"lora_weights": "nowhere"},
    "a source that is not allowed": {"lora_weights": "alice/ink"},
    "an address with the token": {"lora_weights": f"https://civitai.com/api/download/models/1?token={TOKEN}"},
    "the token as the reference": {"extra_lora": f"{TOKEN}0000000000000000"},
    "a token of another type": {"hf_api_token": [TOKEN]},
    "a token of two words": {"hf_api_token": f"{TOKEN} x"},
    "a token that is too long": {"hf_api_token": TOKEN * 100},
    "a misspelled name": {"hf_api_tokn": TOKEN},
    "a tag with the token": {"prompt": f"a fox <lora:https://civitai.com/api/download/models/1?token={TOKEN}:1>"},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_refusal_does_not_repeat_it(server: Server, wrong: dict[str, Any]) -> None:
    answer = server.predict({**INPUTS, **wrong})
    assert answer.status_code == 422 and TOKEN not in answer.text
    assert answer.json()["detail"][0]["loc"][2] in wrong


def test_no_answer_repeats_it(server: Server) -> None:
    server.wait_until_ready()
    url = f"{server.url}/predictions/{server.new_id()}"
    begun = requests.put(url, json={"input": INPUTS}, headers={"Prefer": "respond-async"}, timeout=60)
    state = requests.put(url, json={"input": INPUTS}, timeout=60)
    ended = server.predict(INPUTS)
    assert (begun.status_code, ended.status_code) == (202, 200), ended.text
    assert not any(TOKEN in answer.text for answer in (begun, state, ended))
    _, _, picture = ended.json()["output"][0].partition(",")
    assert TOKEN.encode() not in base64.b64decode(picture)
    assert server.comes_to_rest()
    assert TOKEN not in server.log.read_text()


def test_a_table_and_its_results_do_not_keep_it(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text(f"id,prompt,hf_api_token\ngood,a fox,{TOKEN}\nbad,a fox,{TOKEN} x\n")
    rows = read_table(table, InputSchema())
    assert TOKEN not in repr(rows) and rows[1].problem.startswith("hf_api_token: is no token")
    results = Manifest(tmp_path)
    results.begin(rows, resume=False)
    results.deliver(Outcome(rows[1], error=rows[1].problem))
    assert TOKEN not in results.path.read_text() and "is no token" in results.path.read_text()


def test_the_command_reads_it_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    schema = InputSchema()
    given = schema.parse(with_files_read([f"hf_api_token=@{tmp_path / 'token'}", "prompt=a fox"], schema))
    assert TOKEN not in repr(schema.validate(given))
    with pytest.raises(InputError) as refused:
        with_files_read([f"hf_api_token=@{tmp_path / 'nowhere'}"], schema)
    assert str(refused.value).startswith("hf_api_token: cannot read")
