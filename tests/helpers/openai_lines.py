"""Lines of OpenAI's batch files."""

import json
from typing import Any

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def line(url: str = CHAT, custom_id: Any = "one", **body: Any) -> bytes:
    """The line of a request with this body; a chat has a default message."""
    default = {"messages": HELLO} if url == CHAT else {}
    envelope = {"custom_id": custom_id, "method": "POST", "url": url, "body": default | body}
    return json.dumps(envelope).encode()
