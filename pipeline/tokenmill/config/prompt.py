"""The `prompt` section of a job file: templates, messages or whole chats."""

from pydantic import Field, model_validator

from tokenmill.config.section import Section


class Message(Section):
    """One turn of a chat; its content is a template."""

    role: str = Field(min_length=1, description="`system`, `user` or `assistant`.")
    content: str = Field(description="A Jinja2 template over the row's columns.")


class Prompt(Section):
    """How a row becomes a prompt: Jinja2 templates over its columns, or a column of chats.

    Give one of `user` (with or without `system`), `messages`, `text` and `chat`.
    """

    system: str | None = Field(default=None, description="Template of the system message.")
    user: str | None = Field(default=None, description="Template of the user message.")
    messages: tuple[Message, ...] | None = Field(
        default=None, min_length=1, description="All messages of the chat, in order."
    )
    text: str | None = Field(
        default=None, description="Template of a prompt without the model's chat template."
    )
    chat: str | None = Field(
        default=None,
        min_length=1,
        description="For `generate`: a column with each row's chat, a list of {role, content}.",
    )

    @model_validator(mode="after")
    def _check_one_form(self) -> "Prompt":
        forms = (self.user, self.messages, self.text, self.chat)
        if sum(form is not None for form in forms) != 1:
            raise ValueError("give one of user (with or without system), messages, text, chat")
        if self.system is not None and self.user is None:
            raise ValueError(
                "system goes with user; with messages, write a message with the role system"
            )
        return self

    @property
    def turns(self) -> tuple[Message, ...]:
        """The messages of the chat. Empty for `text`, and for `chat` (each row has its own)."""
        if self.messages is not None:
            return self.messages
        if self.user is None:
            return ()
        system = () if self.system is None else (Message(role="system", content=self.system),)
        return (*system, Message(role="user", content=self.user))

    @property
    def templates(self) -> dict[str, str]:
        """The templates by their key below `prompt`, in order."""
        if self.text is not None:
            return {"text": self.text}
        if self.messages is not None:
            turns = enumerate(self.messages)
            return {f"messages.{position}": turn.content for position, turn in turns}
        return {turn.role: turn.content for turn in self.turns}
