"""TPO behind OpenAI's API: an app on loopback, and OpenAI's own client, which gets a whole answer and a stream.

Run it with:  python examples/serving.py [a name for load_policy]

From a shell the same server is:  tpo-graph serve --policy NAME --reward NAME
"""

import socket
import threading

import openai
import uvicorn
from offline_models import chosen_models
from openai.types.chat import ChatCompletionUserMessageParam

from tpo_graph.serving import create_app

QUESTION: ChatCompletionUserMessageParam = {"role": "user", "content": "Why does warmth make you feel tired?"}

policy, reward = chosen_models()
app = create_app({"mine": policy}, reward)

listening = socket.create_server(("127.0.0.1", 0))
server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
thread.start()

address = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
with openai.OpenAI(base_url=address, api_key="not needed") as client:
    # the recipe is the model: two steps, three candidates each; other settings go into `tpo`
    answer = client.chat.completions.create(
        model="tpo-d2-n3", messages=[QUESTION], extra_body={"tpo": {"preference": "It names a cause."}}
    )
    print(answer.choices[0].message.content)
    report = answer.model_extra["tpo"] if answer.model_extra else {}  # what the server adds to OpenAI's fields
    for step in report["trajectory"]:
        print(f"step {step['step']}: best reward {step['best_reward']:+.3f}")
    print(f"{report['stop_reason']}, {answer.usage.total_tokens if answer.usage else 0} tokens in all")

    for chunk in client.chat.completions.create(model="bon-3/mine", messages=[QUESTION], stream=True):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

server.should_exit = True
thread.join()
listening.close()
