//! The real EC2 and the real instance metadata service.
//!
//! Of the AWS SDK only what finds credentials is used (`aws-config`) and what signs (`aws-sigv4`): the thirteen actions are
//! forms and XML of EC2's query protocol, 2016-11-15, which have not changed in ten years. `docs/adr/008` has the numbers.
//!
//! ```text
//!  Cloud ──► Ec2: form ──► sign ──► POST ──► XML ──► Interface, Subnet ...
//!                 ▲         └ credentials: environment, IRSA, Pod Identity, instance role; kept until they are old
//!                 └─ again, where it helps: throttled, no connection, a server that failed
//!  Metadata ──► Imds: PUT token, GET path
//! ```

mod answer;
mod calls;
mod client;
mod credentials;
mod ec2;
mod imds;
mod settings;

pub use calls::{Called, Calls};
pub use credentials::CredentialsError;
pub use ec2::{Ec2, Ec2Error};
pub use imds::Imds;
pub use settings::Settings;
