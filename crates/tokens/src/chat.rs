//! Kimi K2's chat format: a conversation as token ids.
//!
//! `<|im_system|>system<|im_middle|>…<|im_end|><|im_user|>user<|im_middle|>…<|im_end|><|im_assistant|>…`:
//! no `[BOS]`, no newlines between messages. Ids are built directly, so nothing that a user writes can
//! become a special token.

use crate::{Tokenizer, TokenizerError, special};

/// The system message that K2's template puts before a conversation that begins without one.
pub const DEFAULT_SYSTEM: &str = "You are Kimi, an AI assistant created by Moonshot AI.";

/// [`render`] as a Jinja template, for programs that read `tokenizer_config.json`.
///
/// They turn the text into ids with special names matched, so there a user can write special tokens.
pub(crate) const TEMPLATE: &str = concat!(
    "{%- if messages and messages[0]['role'] != 'system' -%}",
    "<|im_system|>system<|im_middle|>You are Kimi, an AI assistant created by Moonshot AI.<|im_end|>",
    "{%- endif -%}",
    "{%- for message in messages -%}",
    "{%- if message['role'] == 'user' -%}<|im_user|>",
    "{%- elif message['role'] == 'assistant' -%}<|im_assistant|>",
    "{%- else -%}<|im_system|>{%- endif -%}",
    "{{- message.get('name') or message['role'] -}}<|im_middle|>",
    "{{- message['content'] -}}<|im_end|>",
    "{%- endfor -%}",
    "{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- endif -%}",
);

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions from the operator.
    System,
    /// The human.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The token that opens this role's messages.
    pub fn opening(self) -> &'static str {
        match self {
            Role::System => special::IM_SYSTEM,
            Role::User => special::IM_USER,
            Role::Assistant => special::IM_ASSISTANT,
        }
    }

    /// The name in messages that do not give another.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; special names in it stay text.
    pub content: String,
    /// Shown to the model in place of the role's name.
    pub name: Option<String>,
}

impl Message {
    /// A message under the role's own name.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), name: None }
    }
}

/// What surrounds the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RenderOptions<'a> {
    /// Put before a conversation that does not begin with a system message.
    pub default_system: Option<&'a str>,
    /// Ends with the opening of an assistant message, for the model to go on.
    pub generation_prompt: bool,
}

impl Default for RenderOptions<'static> {
    /// K2's template as it is used for generation.
    fn default() -> Self {
        Self { default_system: Some(DEFAULT_SYSTEM), generation_prompt: true }
    }
}

/// The token ids of a conversation.
///
/// Fails only if the tokenizer lacks the chat tokens.
pub fn render(
    tokenizer: &Tokenizer,
    messages: &[Message],
    options: RenderOptions<'_>,
) -> Result<Vec<u32>, TokenizerError> {
    let mut renderer = Renderer { tokenizer, ids: Vec::new() };
    let lacks_system = messages.first().is_some_and(|message| message.role != Role::System);
    if let (Some(system), true) = (options.default_system, lacks_system) {
        renderer.message(Role::System, None, system)?;
    }
    for message in messages {
        renderer.message(message.role, message.name.as_deref(), &message.content)?;
    }
    if options.generation_prompt {
        renderer.opening(Role::Assistant, None)?;
    }
    Ok(renderer.ids)
}

struct Renderer<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
}

impl Renderer<'_> {
    fn message(&mut self, role: Role, name: Option<&str>, content: &str) -> Result<(), TokenizerError> {
        self.opening(role, name)?;
        self.text(content);
        self.special(special::IM_END)
    }

    fn opening(&mut self, role: Role, name: Option<&str>) -> Result<(), TokenizerError> {
        self.special(role.opening())?;
        self.text(name.filter(|name| !name.is_empty()).unwrap_or(role.name()));
        self.special(special::IM_MIDDLE)
    }

    fn text(&mut self, text: &str) {
        self.ids.extend(self.tokenizer.encode(text));
    }

    fn special(&mut self, name: &str) -> Result<(), TokenizerError> {
        let id = self.tokenizer.special(name);
        self.ids.push(id.ok_or_else(|| TokenizerError::MissingSpecial(name.into()))?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_jinja_template_has_the_default_system_message() {
        assert!(super::TEMPLATE.contains(super::DEFAULT_SYSTEM));
    }
}
