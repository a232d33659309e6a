//! The OpenAPI description, made from the handlers themselves.

use utoipa::{
    Modify, OpenApi,
    openapi::{
        OpenApi as Document,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

use super::{bind, execs, files, sessions};

#[derive(OpenApi)]
#[openapi(
    info(title = "Wharf sandbox API", description = "What can be done to one sandbox.", license(name = "Apache-2.0")),
    paths(
        super::health, super::info, super::openapi_json, bind::bind,
        sessions::create, sessions::list, sessions::show, sessions::remove, sessions::run, sessions::input,
        sessions::resize, sessions::signal, sessions::reset, sessions::screen, sessions::output,
        execs::create, execs::list, execs::show, execs::remove, execs::stdin, execs::signal, execs::resize,
        execs::output, execs::wait,
        files::read, files::write, files::list, files::stat, files::make_directory, files::rename, files::remove,
        files::download, files::upload, files::search,
    ),
    security(("key" = [])),
    modifiers(&Key),
)]
struct Api;

struct Key;

impl Modify for Key {
    fn modify(&self, document: &mut Document) {
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("key", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

/// The description of all routes below `/v1`.
pub(super) fn document() -> Document {
    Api::openapi()
}
