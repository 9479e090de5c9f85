//! The AWS SDK for Rust: batches of ten from a file of ids, so many at once, one attempt each.

use aws_sdk_snowdevicemanagement::config::{retry::RetryConfig, Credentials, Region};
use aws_sdk_snowdevicemanagement::types::{Command, Reboot};
use aws_sdk_snowdevicemanagement::{Client, Config};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Instant;

/// CPU seconds of this process so far, in the kernel's ticks of 10 ms.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let workers: usize = arguments[3].parse().unwrap();
    let text = std::fs::read_to_string(&arguments[2]).unwrap();
    let ids: Arc<Vec<String>> = Arc::new(text.split_whitespace().map(String::from).collect());
    let config = Config::builder()
        .behavior_version_latest()
        .region(Region::new("us-west-2"))
        .endpoint_url(&arguments[1])
        .retry_config(RetryConfig::disabled())
        .credentials_provider(Credentials::new("bench", "bench", None, None, "bench"))
        .build();
    let client = Client::from_conf(config);
    let next = Arc::new(AtomicUsize::new(0));
    let (cpu_began, began) = (cpu(), Instant::now());
    let mut tasks = Vec::new();
    for _ in 0..workers {
        let (client, ids, next) = (client.clone(), ids.clone(), next.clone());
        tasks.push(tokio::spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let first = next.fetch_add(10, Ordering::Relaxed);
                if first >= ids.len() {
                    return latencies;
                }
                let sent = Instant::now();
                client
                    .create_task()
                    .set_targets(Some(ids[first..(first + 10).min(ids.len())].to_vec()))
                    .client_token(format!("{first:064}"))
                    .command(Command::Reboot(Reboot::builder().build()))
                    .send()
                    .await
                    .unwrap();
                latencies.push(sent.elapsed().as_secs_f64() * 1e3);
            }
        }));
    }
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.unwrap());
    }
    let shown: Vec<String> = latencies.iter().map(|ms| format!("{ms:.3}")).collect();
    println!(
        "{{\"cpu_s\": {}, \"wall_s\": {}, \"latencies_ms\": [{}]}}",
        cpu() - cpu_began,
        began.elapsed().as_secs_f64(),
        shown.join(",")
    );
}
