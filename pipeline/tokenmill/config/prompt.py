"""The prompt section of a job file: templates, messages or whole chats."""

from pydantic import Field, model_validator

from tokenmill.config.section import Section


class Message(Section):
    """One turn of a chat; its content is a template."""

    role: str = Field(min_length=1)
    content: str


class Prompt(Section):
    """Jinja2 templates over the row's columns: `system` and `user`, or `messages`, or `text`.

    Or `chat`, a column of whole chats.
    """

    system: str | None = None
    user: str | None = None
    messages: tuple[Message, ...] | None = Field(default=None, min_length=1)
    text: str | None = Field(
        default=None, description="A prompt as it is, without the model's chat template."
    )
    chat: str | None = Field(
        default=None,
        min_length=1,
        description="For generate: the column with a row's messages, a list of {role, content}.",
    )

    @model_validator(mode="after")
    def _one_form(self) -> "Prompt":
        forms = (self.user, self.messages, self.text, self.chat)
        if sum(form is not None for form in forms) != 1:
            raise ValueError("give one of user (with or without system), messages, text, chat")
        if self.system is not None and self.user is None:
            raise ValueError("system goes with user; with messages write a message of that role")
        return self

    @property
    def turns(self) -> tuple[Message, ...]:
        """The chat's messages; empty for a plain `text`, and where each row has its own."""
        if self.messages is not None:
            return self.messages
        if self.user is None:
            return ()
        system = () if self.system is None else (Message(role="system", content=self.system),)
        return (*system, Message(role="user", content=self.user))

    @property
    def templates(self) -> dict[str, str]:
        """The templates by the place below `prompt` that names them, in order."""
        if self.text is not None:
            return {"text": self.text}
        if self.messages is not None:
            turns = enumerate(self.messages)
            return {f"messages.{position}": turn.content for position, turn in turns}
        return {turn.role: turn.content for turn in self.turns}
