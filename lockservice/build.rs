//! Compiles the published proto file, without a `protoc` on the machine.

use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

const PACKAGE: &str = "lockservice.v1";

fn main() -> Result<(), Box<dyn Error>> {
    let file = "proto/lockservice/v1/lockservice.proto";
    println!("cargo:rerun-if-changed={file}");
    let descriptors = protox::compile([file], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("lockservice.bin"), descriptors.encode_to_vec())?;
    std::fs::write(out.join("shapes.rs"), shapes(&descriptors)?)?;
    std::fs::write(out.join("methods.rs"), methods(&descriptors))?;
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::codec::BoundedCodec")
        .compile_fds(descriptors)?;
    Ok(())
}

/// The paths of all methods, sorted: see `metrics/rpc.rs`.
fn methods(descriptors: &FileDescriptorSet) -> String {
    let files = descriptors.file.iter().filter(|file| file.package() == PACKAGE);
    let services = files.flat_map(|file| &file.service);
    let mut paths: Vec<String> = services
        .flat_map(|service| {
            let name = format!("/{PACKAGE}.{}", service.name());
            service.method.iter().map(move |method| format!("{name}/{}", method.name()))
        })
        .collect();
    paths.sort_unstable();
    format!("&{paths:?}")
}

/// For each message, what its fields cost when they are decoded: see `codec.rs`.
fn shapes(descriptors: &FileDescriptorSet) -> Result<String, Box<dyn Error>> {
    let mut code = String::new();
    let files = descriptors.file.iter().filter(|file| file.package() == PACKAGE);
    for message in files.flat_map(|file| &file.message_type) {
        let name = message.name();
        if !message.nested_type.is_empty() {
            return Err(format!(
                "{name} has a nested message: `shapes` does not know their names in Rust"
            )
            .into());
        }
        writeln!(code, "impl Shaped for crate::proto::{name} {{")?;
        writeln!(code, "    const SHAPE: &'static Shape = &Shape {{")?;
        writeln!(code, "        bytes: size_of::<crate::proto::{name}>(),")?;
        writeln!(code, "        fields: &[{}],", fields(message))?;
        writeln!(code, "    }};\n}}")?;
    }
    Ok(code)
}

fn fields(message: &DescriptorProto) -> String {
    let known = message.field.iter().filter_map(|field| Some((field.number(), cost(field)?)));
    known.map(|(number, cost)| format!("({number}, {cost}), ")).collect()
}

/// How `codec.rs` counts the field; `None` if its place in the message is all that it costs.
fn cost(field: &FieldDescriptorProto) -> Option<String> {
    match field.r#type() {
        Type::Message => match field.type_name().strip_prefix(&format!(".{PACKAGE}.")) {
            Some(name) => Some(format!("Field::Message(<crate::proto::{name} as Shaped>::SHAPE)")),
            None => Some("Field::Bytes".to_owned()),
        },
        Type::String | Type::Bytes => Some("Field::Bytes".to_owned()),
        _ if field.label() == Label::Repeated => Some("Field::Numbers".to_owned()),
        _ => None,
    }
}
