use std::{path::Path, sync::Arc};

use tokio_util::sync::CancellationToken;
use wharf_protocol::{Limits, Secret};
use wharf_sandboxd::{
    core::{Core, Identity},
    process::users::current_user,
};

pub(crate) const KEY: &str = "the-key-of-a-test";

/// sandboxd with its identity, at work in `home`.
pub(crate) fn core(home: &Path) -> Arc<Core> {
    let core = Arc::new(Core::new(None, CancellationToken::new()));
    let identity = Identity {
        keys: vec![Secret::new(KEY)],
        environment: [("PATH".to_owned(), std::env::var("PATH").unwrap())].into(),
        user: current_user(),
        working_dir: home.to_owned(),
        limits: Limits::default(),
    };
    core.bind(identity, None, 0).unwrap();
    core
}
