"""Lines of OpenAI's batch files."""

import json
from typing import Any

CHAT = "/v1/chat/completions"


HELLO = [{"role": "user", "content": "Hello"}]


def line(url: str = CHAT, custom_id: Any = "one", **body: Any) -> bytes:
    """A request's line; a chat that says hello unless the body says otherwise."""
    asked = {"messages": HELLO} if url == CHAT else {}
    envelope = {"custom_id": custom_id, "method": "POST", "url": url, "body": asked | body}
    return json.dumps(envelope).encode()
