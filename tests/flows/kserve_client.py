"""Asks a service all that kserve's REST client can, and says as JSON what it heard. Run by test_oip_clients."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
from httpx import HTTPStatusError
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

VALUES = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


def asked(values: np.ndarray, binary: bool, **fields: Any) -> InferRequest:
    given = InferInput("x", list(values.shape), "FP32")
    given.set_data_from_numpy(values, binary_data=binary)
    return InferRequest(model_name="net", infer_inputs=[given], **fields)


def logits(answer: Any) -> list[Any]:
    output = answer.get_output_by_name("logits")
    found: list[Any] = output.as_numpy().reshape(output.shape).tolist()
    return found


async def main(url: str) -> dict[str, Any]:
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        told: dict[str, Any] = {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model_ready": await client.is_model_ready(url, "net"),
            "absent_ready": await client.is_model_ready(url, "nope"),
        }
        answer = await client.infer(url, asked(VALUES, False, request_id="42"), model_name="net")
        told |= {"json": logits(answer), "id": answer.id}
        wanted = asked(VALUES, True, parameters={"binary_data_output": True})
        told["binary"] = logits(await client.infer(url, wanted, model_name="net"))
        plain = {"inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": VALUES.tolist()}]}
        told["dict"] = logits(await client.infer(url, plain, model_name="net"))
        text = InferInput("t", [1, 2], "BYTES")
        text.set_data_from_numpy(np.array([["grüß", "b"]], object), binary_data=True)
        answer = await client.infer(url, InferRequest(model_name="text", infer_inputs=[text]), model_name="text")
        told["strings"] = answer.outputs[0].as_numpy().reshape(1, 2).tolist()
        for name, values, model in (("error", VALUES[:, :2], "net"), ("absent", VALUES, "nope")):
            try:
                await client.infer(url, asked(values, False), model_name=model)
            except HTTPStatusError as error:
                told[name] = str(error)
        return told


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(sys.argv[1]))))
