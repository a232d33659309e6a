//! Reading an action of the wire: sections 4.1, 4.2 and 5 of the specification. Pure.

use std::time::Duration;

use serde_json::{Map, Value};

use super::python::repr;

/// An action that the server executes, with its arguments as they came.
#[derive(Debug, Clone, PartialEq)]
pub struct Action {
    pub kind: ActionKind,
    pub arguments: Map<String, Value>,
    /// The hard time limit.
    pub timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionKind {
    Run,
    RunIpython,
    Read,
    Write,
    Edit,
    Browse,
    BrowseInteractive,
}

/// The longest time limit that is kept as it is; a longer one means as much as none.
const LONGEST_TIMEOUT: f64 = 1e9;

/// Every action name of the protocol with the name of its constant in the original's enumeration.
const ACTIONS: [(&str, &str); 20] = [
    ("NULL", "null"),
    ("RUN", "run"),
    ("RUN_IPYTHON", "run_ipython"),
    ("BROWSE", "browse"),
    ("BROWSE_INTERACTIVE", "browse_interactive"),
    ("READ", "read"),
    ("WRITE", "write"),
    ("EDIT", "edit"),
    ("THINK", "think"),
    ("FINISH", "finish"),
    ("REJECT", "reject"),
    ("DELEGATE", "delegate"),
    ("RECALL", "recall"),
    ("CHANGE_AGENT_STATE", "change_agent_state"),
    ("MESSAGE", "message"),
    ("SYSTEM", "system"),
    ("CONDENSATION", "condensation"),
    ("CONDENSATION_REQUEST", "condensation_request"),
    ("MCP", "call_tool_mcp"),
    ("TASK_TRACKING", "task_tracking"),
];

impl ActionKind {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "run" => Self::Run,
            "run_ipython" => Self::RunIpython,
            "read" => Self::Read,
            "write" => Self::Write,
            "edit" => Self::Edit,
            "browse" => Self::Browse,
            "browse_interactive" => Self::BrowseInteractive,
            _ => return None,
        })
    }

    fn class(self) -> &'static str {
        match self {
            Self::Run => "CmdRunAction",
            Self::RunIpython => "IPythonRunCellAction",
            Self::Read => "FileReadAction",
            Self::Write => "FileWriteAction",
            Self::Edit => "FileEditAction",
            Self::Browse => "BrowseURLAction",
            Self::BrowseInteractive => "BrowseInteractiveAction",
        }
    }

    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Run => &["command"],
            Self::RunIpython => &["code"],
            Self::Read | Self::Edit => &["path"],
            Self::Write => &["path", "content"],
            Self::Browse => &["url"],
            Self::BrowseInteractive => &["browser_actions"],
        }
    }

    fn optional(self) -> &'static [&'static str] {
        match self {
            Self::Run => &["is_input", "blocking", "is_static", "cwd", "hidden", "confirmation_state", "reset"],
            Self::RunIpython => &["include_extra", "confirmation_state", "kernel_init_code"],
            Self::Read => &["start", "end", "impl_source", "view_range"],
            Self::Write => &["start", "end"],
            Self::Edit => {
                &["command", "file_text", "old_str", "new_str", "insert_line", "content", "start", "end", "impl_source"]
            }
            Self::Browse => &["return_axtree"],
            Self::BrowseInteractive => &["browsergym_send_msg_to_user", "return_axtree"],
        }
    }
}

/// Reads the `action` object of a request. The error is the text after `Internal server error: `.
pub fn parse(event: &Map<String, Value>) -> Result<Action, String> {
    let Some(name) = event.get("action") else {
        return Err(if event.contains_key("observation") {
            "400: Invalid action type".to_owned()
        } else {
            format!("Unknown event type: {}", repr(&Value::Object(event.clone())))
        });
    };
    let known =
        name.as_str().is_some_and(|name| name == "loop_recovery" || ACTIONS.iter().any(|(_, wire)| *wire == name));
    let Some(name) = name.as_str().filter(|_| known) else {
        let mut names: Vec<String> =
            ACTIONS.iter().map(|(constant, wire)| format!("<ActionType.{constant}: '{wire}'>")).collect();
        names.push("<ActionType.LOOP_RECOVERY: 'loop_recovery'>".to_owned());
        return Err(format!(
            "'action['action']={}' is not defined. Available actions: dict_keys([{}])",
            repr(name),
            names.join(", ")
        ));
    };
    let Some(kind) = ActionKind::of(name) else {
        return Err(format!("'ActionExecutor' object has no attribute '{name}'"));
    };
    let mut arguments = match event.get("args") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(arguments)) => arguments.clone(),
        Some(other) => return Err(format!("`args` must be an object, not {}", repr(other))),
    };
    forget_old_names(&mut arguments);
    let wrong = |what: String| {
        format!(
            "action={} has the wrong arguments: {}.__init__() {what}",
            repr(&Value::Object(event.clone())),
            kind.class()
        )
    };
    for name in arguments.keys() {
        let known = matches!(name.as_str(), "thought" | "security_risk")
            || kind.required().contains(&name.as_str())
            || kind.optional().contains(&name.as_str());
        if !known {
            return Err(wrong(format!("got an unexpected keyword argument '{name}'")));
        }
    }
    let missing: Vec<&str> = kind.required().iter().copied().filter(|name| !arguments.contains_key(*name)).collect();
    match missing.as_slice() {
        [] => {}
        [one] => return Err(wrong(format!("missing 1 required positional argument: '{one}'"))),
        [first, second, ..] => {
            return Err(wrong(format!("missing 2 required positional arguments: '{first}' and '{second}'")));
        }
    }
    Ok(Action { kind, arguments, timeout: timeout(event)? })
}

/// What older clients send and nobody reads any more.
fn forget_old_names(arguments: &mut Map<String, Value>) {
    for name in ["keep_prompt", "task_completed", "timestamp", "translated_ipython_code"] {
        arguments.shift_remove(name);
    }
    if let Some(state) = arguments.shift_remove("is_confirmed") {
        arguments.insert("confirmation_state".to_owned(), state);
    }
    arguments.shift_remove("images_urls");
}

fn timeout(event: &Map<String, Value>) -> Result<Option<Duration>, String> {
    let Some(value) = event.get("timeout").filter(|value| !value.is_null()) else { return Ok(None) };
    match value.as_f64() {
        Some(seconds) if seconds > LONGEST_TIMEOUT => Ok(None),
        Some(seconds) => Ok(Some(Duration::from_secs_f64(seconds.max(0.0)))),
        None => Err(format!("`timeout` must be a number of seconds, not {}", repr(value))),
    }
}

/// A text argument; absent or `null` is `None`.
///
/// # Errors
///
/// A sentence that names the argument and its value if it is of another type.
pub fn text<'a>(arguments: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, String> {
    match arguments.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("`{name}` must be a string, not {}", repr(other))),
    }
}

/// A flag as Python sees it: absent, `null`, `0`, `""` and empty collections are false.
pub fn flag(arguments: &Map<String, Value>, name: &str) -> bool {
    match arguments.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::Bool(flag)) => *flag,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(fields)) => !fields.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn refused(event: Value, expected: &str) {
        let refusal = parse(event.as_object().unwrap()).unwrap_err();
        assert!(refusal.starts_with(expected), "{refusal}");
    }

    #[test]
    fn what_is_no_action_is_refused_in_the_words_of_the_original() {
        refused(json!({"args": {}}), "Unknown event type: {'args': {}}");
        refused(json!({"observation": "run"}), "400: Invalid action type");
        refused(
            json!({"action": 5}),
            "'action['action']=5' is not defined. Available actions: dict_keys([<ActionType.NULL",
        );
        refused(json!({"action": "think", "args": {}}), "'ActionExecutor' object has no attribute 'think'");
        refused(
            json!({"action": "run", "args": {"foo": 1}}),
            "action={'action': 'run', 'args': {'foo': 1}} has the wrong arguments: CmdRunAction.__init__() got an \
             unexpected keyword argument 'foo'",
        );
        refused(
            json!({"action": "write", "args": {}}),
            "action={'action': 'write', 'args': {}} has the wrong arguments: FileWriteAction.__init__() missing 2 \
             required positional arguments: 'path' and 'content'",
        );
    }

    #[test]
    fn what_older_clients_send_is_read() {
        let event = json!({"action": "run", "args": {"command": "ls", "keep_prompt": true, "is_confirmed": "x"},
                           "timeout": 1.5, "llm_metrics": 7});
        let action = parse(event.as_object().unwrap()).unwrap();
        assert_eq!(action.kind, ActionKind::Run);
        assert_eq!(action.timeout, Some(Duration::from_millis(1500)));
        assert_eq!(text(&action.arguments, "command"), Ok(Some("ls")));
    }

    #[test]
    fn a_time_limit_that_is_no_number_or_is_endless_does_no_harm() {
        let limit = |value: Value| {
            parse(json!({"action": "run", "args": {"command": "x"}, "timeout": value}).as_object().unwrap())
                .map(|action| action.timeout)
        };
        assert_eq!(limit(json!(1e300)), Ok(None));
        assert_eq!(limit(json!(-5)), Ok(Some(Duration::ZERO)));
        assert!(limit(json!("soon")).is_err());
    }
}
