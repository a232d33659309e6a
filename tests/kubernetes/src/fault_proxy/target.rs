//! What a request to an API server is about, from its method, path, query and headers.
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/> has the shapes of paths.

use std::fmt;

use http::{HeaderMap, Method, Uri, header};

/// What a request does. Unlike Kubernetes' own verbs, an apply is told from other patches, and all of exec, attach and
/// port-forward is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    /// A server-side apply.
    Apply,
    /// Any other patch.
    Patch,
    Delete,
    DeleteCollection,
    /// The connection becomes a tunnel: exec, attach, port-forward.
    Connect,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub verb: Verb,
    pub namespace: Option<String>,
    /// As in a role: `pods`, `pods/portforward`. `None` for what is no resource: `/version`, `/readyz`, discovery.
    pub resource: Option<String>,
    /// `None` for a create: there the name is in the body. A list or watch has one if it selects `metadata.name`.
    pub name: Option<String>,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Apply => "apply",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
            Self::Connect => "connect",
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.verb)?;
        for part in self.resource.iter().chain(&self.name) {
            write!(f, " {part}")?;
        }
        Ok(())
    }
}

impl Target {
    pub(super) fn of(method: &Method, uri: &Uri, headers: &HeaderMap) -> Self {
        let segments: Vec<_> = uri.path().split('/').filter(|segment| !segment.is_empty()).collect();
        let (namespace, rest) = match segments.as_slice() {
            ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] => match rest {
                // These two are parts of the namespace itself, not kinds of objects in it.
                ["namespaces", _, "status" | "finalize", ..] => (None, rest),
                ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
                rest => (None, rest),
            },
            _ => (None, &[][..]),
        };
        let resource = match rest {
            [] => None,
            [kind] | [kind, _] => Some((*kind).to_owned()),
            [kind, _, part, ..] => Some(format!("{kind}/{part}")),
        };
        let name = rest.get(1).map(|name| (*name).to_owned());
        let verb = find_verb(method, uri, headers, resource.is_some() && name.is_none());
        Self { verb, namespace, resource, name: name.or_else(|| find_selected_name(uri)) }
    }
}

fn find_verb(method: &Method, uri: &Uri, headers: &HeaderMap, is_collection: bool) -> Verb {
    if headers.contains_key(header::UPGRADE) {
        return Verb::Connect;
    }
    let is_apply = || {
        headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/apply-patch"))
    };
    match *method {
        Method::POST => Verb::Create,
        Method::PUT => Verb::Update,
        Method::PATCH if is_apply() => Verb::Apply,
        Method::PATCH => Verb::Patch,
        Method::DELETE if is_collection => Verb::DeleteCollection,
        Method::DELETE => Verb::Delete,
        _ if matches!(find_parameter(uri, "watch"), Some("true" | "1")) => Verb::Watch,
        _ if is_collection => Verb::List,
        _ => Verb::Get,
    }
}

fn find_parameter<'uri>(uri: &'uri Uri, name: &str) -> Option<&'uri str> {
    uri.query()?
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

fn find_selected_name(uri: &Uri) -> Option<String> {
    // Only the two separators can be encoded: a name has no character that must be.
    let selector = find_parameter(uri, "fieldSelector")?.replace("%3D", "=").replace("%2C", ",");
    selector
        .split(',')
        .find_map(|term| term.strip_prefix("metadata.name="))
        .map(|name| name.trim_matches('=').to_owned())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[track_caller]
    fn check(request: &str, expected: &str) {
        let mut words = request.split(' ');
        let mut built = Request::builder().method(words.next().unwrap()).uri(words.next().unwrap());
        for header in words {
            let (name, value) = header.split_once(':').unwrap();
            built = built.header(name, value);
        }
        let (parts, ()) = built.body(()).unwrap().into_parts();
        assert_eq!(Target::of(&parts.method, &parts.uri, &parts.headers).to_string(), expected, "{request}");
    }

    #[test]
    fn a_request_is_named_by_verb_resource_and_name() {
        let pods = "/api/v1/namespaces/n/pods";
        check(&format!("GET {pods}"), "list pods");
        check("GET /api/v1/pods?limit=5", "list pods");
        check(&format!("GET {pods}?limit=5&watch=true"), "watch pods");
        check(&format!("GET {pods}?watch=1&fieldSelector=metadata.name%3Da"), "watch pods a");
        check(&format!("GET {pods}?fieldSelector=metadata.namespace%3Dn%2Cmetadata.name%3D%3Da"), "list pods a");
        check(&format!("GET {pods}/a"), "get pods a");
        check(&format!("GET {pods}/a/log?follow=true"), "get pods/log a");
        check(&format!("POST {pods}"), "create pods");
        check(&format!("PUT {pods}/a/status"), "update pods/status a");
        check(&format!("PATCH {pods}/a content-type:application/apply-patch+yaml"), "apply pods a");
        check(&format!("PATCH {pods}/a content-type:application/merge-patch+json"), "patch pods a");
        check(&format!("DELETE {pods}/a"), "delete pods a");
        check(&format!("DELETE {pods}?labelSelector=x"), "deletecollection pods");
    }

    #[test]
    fn a_request_for_an_upgrade_connects_whatever_its_method() {
        check("GET /api/v1/namespaces/n/pods/a/exec?command=ls upgrade:websocket", "connect pods/exec a");
        check("POST /api/v1/namespaces/n/pods/a/portforward upgrade:SPDY/3.1", "connect pods/portforward a");
    }

    #[test]
    fn namespaces_groups_and_what_is_no_resource() {
        check("GET /api/v1/namespaces", "list namespaces");
        check("DELETE /api/v1/namespaces/n", "delete namespaces n");
        check("PUT /api/v1/namespaces/n/finalize", "update namespaces/finalize n");
        check("POST /apis/networking.k8s.io/v1/namespaces/n/ingresses", "create ingresses");
        check("GET /apis/storage.k8s.io/v1/storageclasses/standard", "get storageclasses standard");
        check("GET /version", "get");
        check("GET /apis/apps/v1", "get");
    }
}
