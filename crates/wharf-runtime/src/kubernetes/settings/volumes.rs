//! Volumes beside the workspace, and rules for scheduling, as manifests spell them.

use k8s_openapi::api::core::v1::{Affinity, Volume};
use serde_json::{Map, Value, json};

use super::{
    ExtraVolume, Settings, SettingsProblem,
    check::Fault,
    syntax,
    value::{Place, Setting, Spelled},
};

/// What a volume can be made of.
const SOURCES: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "hostPath",
    "image",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "portworxVolume",
    "projected",
    "quobyte",
    "rbd",
    "scaleIO",
    "secret",
    "storageos",
    "vsphereVolume",
];

/// Names of the volumes that every pod of ours has.
const OUR_VOLUMES: &[&str] = &["workspace", "workspace-volume"];
const OUR_VOLUME_PREFIX: &str = "wharf-";
/// Nothing is mounted there or below, but shared memory.
const KEPT_DIRECTORIES: &[&str] = &["/proc", "/sys", "/dev", "/wharf"];
const SHARED_MEMORY: &str = "/dev/shm";

impl Setting for Affinity {
    const SPELLED: Spelled = Spelled::Structure;

    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        place.table(problems)?;
        place.manifest(problems)
    }
}

impl Setting for Vec<ExtraVolume> {
    const SPELLED: Spelled = Spelled::Structure;

    fn read(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<Self> {
        let items = place.items(problems)?;
        let volumes: Vec<_> = items.iter().map(|item| volume(item, problems)).collect();
        volumes.into_iter().collect()
    }
}

/// The table says what is mounted where, and beside it holds the volume's source as a manifest does. The source's own
/// name is understood in both spellings, `config_map` and `configMap`; what is in it is spelled as Kubernetes does.
fn volume(place: &Place<'_>, problems: &mut Vec<SettingsProblem>) -> Option<ExtraVolume> {
    let told = problems.len();
    let snake: Vec<_> = SOURCES.iter().map(|source| snake_case(source)).collect();
    let pairs: Vec<_> = SOURCES.iter().zip(&snake).map(|(camel, snake)| [*camel, snake.as_str()]).collect();
    let own: [&[&str]; 4] =
        [&["name"], &["mount_path", "mountPath"], &["sub_path", "subPath"], &["read_only", "readOnly"]];
    let known: Vec<&[&str]> = own.into_iter().chain(pairs.iter().map(<[&str; 2]>::as_slice)).collect();
    let mut entries = place.known_entries(&known, problems)?;
    let mut required = |name: &str| {
        let text = entries.remove(name).map(|text| String::read(&text, problems));
        if text.is_none() {
            place.refuse(problems, format!("`{name}` is missing"));
        }
        text.flatten()
    };
    let (name, mount_path) = (required("name"), required("mount_path"));
    let sub_path = entries.remove("sub_path").and_then(|path| String::read(&path, problems));
    let read_only = entries.remove("read_only").and_then(|truth| bool::read(&truth, problems)).unwrap_or(false);
    if entries.len() != 1 {
        let found: Vec<_> = entries.keys().map(|source| format!("`{source}`")).collect();
        let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
        place.refuse(problems, format!("one source such as `config_map` or `secret` is expected, there is {found}"));
    }
    let (source, written) = entries.into_iter().next()?;
    let name = name.unwrap_or_default();
    let part = Map::from_iter([(source.to_owned(), written.value.clone()), ("name".to_owned(), json!(name))]);
    let volume: Volume = Place { path: place.path.clone(), value: &Value::Object(part) }.manifest(problems)?;
    (problems.len() == told).then_some(ExtraVolume { volume, mount_path: mount_path?, sub_path, read_only })
}

/// `persistentVolumeClaim` as `persistent_volume_claim`, `scaleIO` as `scale_io`.
fn snake_case(camel: &str) -> String {
    let mut snake = String::new();
    for character in camel.chars() {
        // A run of capitals is one word, as in `downwardAPI`.
        if character.is_ascii_uppercase() && snake.ends_with(|before: char| before.is_ascii_lowercase()) {
            snake.push('_');
        }
        snake.push(character);
    }
    snake.to_ascii_lowercase()
}

/// What is wrong with the volume at an index, beside the volumes before it.
pub(super) fn faults(at: usize, settings: &Settings) -> Vec<Fault> {
    let (before, ExtraVolume { volume, mount_path, sub_path, read_only: _ }) =
        (&settings.extra_volumes[..at], &settings.extra_volumes[at]);
    let name = &volume.name;
    let mut faults = Vec::new();
    let mut tell = |part, value: &str, reason: &str| {
        faults.push(Fault { part, value: value.to_owned(), reason: reason.to_owned() });
    };
    if let Err(reason) = syntax::dns_label(name) {
        tell("name", name, &reason);
    }
    if OUR_VOLUMES.contains(&name.as_str()) || name.starts_with(OUR_VOLUME_PREFIX) {
        tell("name", name, "this name is Wharf's own");
    }
    if before.iter().any(|other| other.volume.name == *name && other.volume != *volume) {
        tell("name", name, "another volume has this name");
    }
    if volume.host_path.is_some() && !settings.privileged {
        tell("hostPath", "", "a part of the node is mounted only if `kubernetes.privileged` is true");
    }
    if let Some(Err(reason)) = sub_path.as_deref().map(syntax::relative_path) {
        tell("sub_path", sub_path.as_deref().unwrap_or_default(), &reason);
    }
    if let Err(reason) = syntax::absolute_path(mount_path) {
        tell("mount_path", mount_path, &reason);
    } else if covers(mount_path, &settings.workspace_path) {
        tell("mount_path", mount_path, "it would hide the workspace");
    } else if is_kept(mount_path) {
        tell("mount_path", mount_path, "nothing is mounted there");
    } else if before.iter().any(|other| syntax::parts(&other.mount_path) == syntax::parts(mount_path)) {
        tell("mount_path", mount_path, "another volume is mounted there");
    }
    faults
}

/// Whether it belongs to the system or to us; a volume may be shared memory, and no other part of them.
pub(super) fn is_kept(path: &str) -> bool {
    KEPT_DIRECTORIES.iter().any(|kept| covers(kept, path)) && syntax::parts(path) != syntax::parts(SHARED_MEMORY)
}

/// Whether `path` is `directory` or below it.
fn covers(directory: &str, path: &str) -> bool {
    syntax::parts(path).starts_with(&syntax::parts(directory))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use expect_test::{Expect, expect};
    use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource};
    use serde::{Deserialize as _, Deserializer, de};

    use super::{
        super::{Overrides, Sources},
        *,
    };

    #[track_caller]
    fn check<T: Setting + std::fmt::Debug>(value: Value, show: fn(&T) -> String, expected: Expect) {
        let mut problems = Vec::new();
        let mut lines = match T::read(&Place { path: "it".to_owned(), value: &value }, &mut problems) {
            Some(read) => show(&read),
            None => String::new(),
        };
        for SettingsProblem { field, reason, .. } in problems {
            lines += &format!("{field}: {reason}\n");
        }
        expected.assert_eq(&lines);
    }

    #[expect(clippy::ptr_arg, reason = "what is read is a Vec")]
    fn show(volumes: &Vec<ExtraVolume>) -> String {
        let one = |ExtraVolume { volume, mount_path, sub_path, read_only }: &ExtraVolume| {
            let volume = serde_json::to_string(volume).unwrap();
            format!("{volume} at {mount_path}, {sub_path:?}, read only: {read_only}\n")
        };
        volumes.iter().map(one).collect()
    }

    #[test]
    fn a_source_is_understood_in_both_spellings() {
        check(
            json!([
                { "name": "a", "mount_path": "/a", "config_map": { "name": "c", "defaultMode": 0o440 } },
                { "name": "b", "mountPath": "/b", "persistentVolumeClaim": { "claimName": "p" }, "readOnly": true },
                { "name": "c", "mount_path": "/c", "sub_path": "x", "empty_dir": {} },
                { "name": "d", "mount_path": "/d", "downward_api": { "items": [] } },
            ]),
            show,
            expect![[r#"
                {"configMap":{"defaultMode":288,"name":"c"},"name":"a"} at /a, None, read only: false
                {"name":"b","persistentVolumeClaim":{"claimName":"p"}} at /b, None, read only: true
                {"emptyDir":{},"name":"c"} at /c, Some("x"), read only: false
                {"downwardAPI":{"items":[]},"name":"d"} at /d, None, read only: false
            "#]],
        );
    }

    #[test]
    fn what_is_missing_too_much_or_unknown_is_refused() {
        check(
            json!([
                { "name": "a", "mount_path": "/a" },
                { "name": "b", "mount_path": "/b", "secret": {}, "emptyDir": {} },
                { "secret": { "secretName": "s" } },
                { "name": "c", "mount_path": "/c", "secret": { "secret_name": "s" } },
                { "name": "d", "mount_path": "/d", "secret": "s" },
                { "name": "e", "mount_path": "/e", "secrets": {} },
                { "name": 1, "mount_path": "/f", "read_only": 5, "nfs": { "server": "h", "path": "/" } },
                "g",
            ]),
            show,
            expect![[r#"
                it[0]: one source such as `config_map` or `secret` is expected, there is none
                it[1]: one source such as `config_map` or `secret` is expected, there is `emptyDir`, `secret`
                it[2]: `name` is missing
                it[2]: `mount_path` is missing
                it[3].secret.secret_name: Kubernetes has no such field here
                it[4]: Kubernetes takes no such thing: invalid type: string "s", expected SecretVolumeSource
                it[5].secrets: unknown key; did you mean `secret`?
                it[5]: one source such as `config_map` or `secret` is expected, there is none
                it[6].name: text is expected: put it in quotes
                it[6].read_only: `true` or `false` is expected
                it[7]: a table is expected
            "#]],
        );
    }

    #[test]
    fn affinity_is_taken_as_kubernetes_spells_it() {
        let term = |operator: &str| {
            json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                { "matchExpressions": [{ "key": "disk", operator: "In", "values": ["ssd"] }] }
            ] } } })
        };
        let show = |affinity: &Affinity| serde_json::to_string(affinity).unwrap();
        check(
            term("operator"),
            show,
            expect![[
                r#"{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"disk","operator":"In","values":["ssd"]}]}]}}}"#
            ]],
        );
        check(
            term("op"),
            show,
            expect![[r#"
            it.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].op: Kubernetes has no such field here
        "#]],
        );
        check(
            json!("x"),
            show,
            expect![[r#"
            it: a table is expected
        "#]],
        );
    }

    #[test]
    fn every_source_of_kubernetes_is_known() {
        let mut fields = Vec::new();
        Volume::deserialize(FieldNames(&mut fields)).unwrap_err();
        fields.retain(|field| *field != "name");
        fields.sort_by_key(|field| field.to_ascii_lowercase());
        assert_eq!(fields, SOURCES);
        for source in SOURCES {
            let part = json!({ "name": "a", (*source): {} });
            let mut problems = Vec::new();
            let volume: Option<Volume> = Place { path: "it".to_owned(), value: &part }.manifest(&mut problems);
            assert!(!problems.iter().any(|problem| problem.reason.contains("no such field")), "{source}: {problems:?}");
            assert!(volume.is_some() || !problems.is_empty());
        }
        assert_eq!(
            ["persistentVolumeClaim", "scaleIO", "downwardAPI", "nfs"].map(snake_case),
            ["persistent_volume_claim", "scale_io", "downward_api", "nfs"]
        );
    }

    /// Takes note of the fields that a type asks for, and gives none.
    struct FieldNames<'a>(&'a mut Vec<&'static str>);

    impl<'de> Deserializer<'de> for FieldNames<'_> {
        type Error = de::value::Error;

        fn deserialize_struct<V: de::Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Self::Error> {
            self.0.extend(fields);
            self.deserialize_any(visitor)
        }

        fn deserialize_any<V: de::Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(de::Error::custom("only the names are wanted"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    fn volume(name: &str, mount_path: &str) -> ExtraVolume {
        let volume =
            Volume { name: name.to_owned(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() };
        ExtraVolume { volume, mount_path: mount_path.to_owned(), sub_path: None, read_only: false }
    }

    #[track_caller]
    fn check_faults(volumes: Vec<ExtraVolume>, privileged: bool, expected: Expect) {
        let environment = BTreeMap::new();
        let sources =
            Sources { toml: None, environment: &environment, overrides: Overrides::default(), process_uid: 0 };
        let mut settings = Settings::load(&sources).unwrap().settings;
        (settings.extra_volumes, settings.privileged) = (volumes, privileged);
        let mut lines = String::new();
        for at in 0..settings.extra_volumes.len() {
            for Fault { part, value, reason } in faults(at, &settings) {
                lines += &format!("[{at}].{part} = {value:?}: {reason}\n");
            }
        }
        expected.assert_eq(&lines);
    }

    #[test]
    fn nothing_is_mounted_over_the_workspace_or_the_system() {
        let volumes = vec![
            volume("cache", "/workspace/.cache"),
            volume("shm", "/dev/shm"),
            volume("cache", "/root/.cache"),
            volume("a", "/workspace/"),
            volume("b", "/proc/sys"),
            volume("c", "/dev/"),
            volume("d", "/wharf/bin"),
            volume("e", "//root/.cache/"),
            volume("f", "relative"),
            volume("wharf-bin", "/g"),
            ExtraVolume { sub_path: Some("../x".to_owned()), ..volume("h", "/h") },
            volume("i", "/"),
        ];
        check_faults(
            volumes,
            false,
            expect![[r#"
            [3].mount_path = "/workspace/": it would hide the workspace
            [4].mount_path = "/proc/sys": nothing is mounted there
            [5].mount_path = "/dev/": nothing is mounted there
            [6].mount_path = "/wharf/bin": nothing is mounted there
            [7].mount_path = "//root/.cache/": another volume is mounted there
            [8].mount_path = "relative": an absolute path is expected
            [9].name = "wharf-bin": this name is Wharf's own
            [10].sub_path = "../x": it must not contain `..`
            [11].mount_path = "/": it must not be the root directory
        "#]],
        );
    }

    #[test]
    fn a_part_of_the_node_is_mounted_only_with_privileges() {
        let host_path = Some(HostPathVolumeSource { path: "/".to_owned(), type_: None });
        let node = Volume { name: "node".to_owned(), host_path, ..Volume::default() };
        let volumes = vec![ExtraVolume { volume: node, ..volume("node", "/node") }];
        check_faults(
            volumes.clone(),
            false,
            expect![[r#"
            [0].hostPath = "": a part of the node is mounted only if `kubernetes.privileged` is true
        "#]],
        );
        check_faults(volumes, true, expect![[""]]);
    }

    #[test]
    fn two_volumes_do_not_share_a_name() {
        let other = Volume { name: "a".to_owned(), ..Volume::default() };
        let volumes = vec![volume("a", "/a"), volume("a", "/b"), ExtraVolume { volume: other, ..volume("a", "/c") }];
        check_faults(
            volumes,
            false,
            expect![[r#"
            [2].name = "a": another volume has this name
        "#]],
        );
    }
}
