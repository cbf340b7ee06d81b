//! The id of a topic, which distinguishes it from an earlier topic of the same name.
//!
//! librdkafka has a call for it (`DescribeTopics`), but rdkafka 0.39 does not expose it. This crate
//! makes that one call over the connections of an existing client. It is the only crate of the
//! workspace that contains `unsafe` code.

use std::{
    ffi::{CStr, CString},
    ptr::{self, NonNull},
    time::Duration,
};

use rdkafka::{ClientContext, bindings as native, client::Client, error::RDKafkaErrorCode};

/// How much longer we wait for librdkafka than librdkafka waits for the broker.
const MARGIN_MS: i32 = 1_000;

/// Why a topic's id could not be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicIdError {
    /// No topic has this name.
    #[error("the topic does not exist")]
    NoTopic,
    /// The request failed or timed out.
    #[error("the request for the topic's id failed: {0}")]
    Request(RDKafkaErrorCode),
}

/// A native object that we own, and the function that frees it.
struct Owned<T> {
    object: NonNull<T>,
    free: unsafe extern "C" fn(*mut T),
}

impl<T> Owned<T> {
    /// Takes ownership of `object`, which must be freed by `free`. Returns `None` for a null
    /// pointer.
    fn new(object: *mut T, free: unsafe extern "C" fn(*mut T)) -> Option<Self> {
        Some(Self { object: NonNull::new(object)?, free })
    }

    fn get(&self) -> *mut T {
        self.object.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: `new` received the object together with its function, nothing else frees it, and
        // `drop` runs once.
        unsafe { (self.free)(self.object.as_ptr()) }
    }
}

/// Fetches the id of `topic` over the connections of `client`, in librdkafka's notation (22
/// characters of base64). Returns `None` if the brokers do not assign ids to topics. Blocks the
/// thread for little more than `timeout`.
///
/// # Errors
///
/// Returns an error if the topic does not exist or the request fails.
pub fn topic_id<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<Option<String>, TopicIdError> {
    let failed = || TopicIdError::Request(RDKafkaErrorCode::Fail);
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX - MARGIN_MS);
    let name = CString::new(topic).map_err(|_| TopicIdError::NoTopic)?;
    let mut names = [name.as_ptr()];
    let rk = client.native_ptr();
    let op = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;

    // SAFETY: `client` keeps `rk` alive for the whole function.
    let options = unsafe { native::rd_kafka_AdminOptions_new(rk, op) };
    let options = Owned::new(options, native::rd_kafka_AdminOptions_destroy).ok_or_else(failed)?;

    // SAFETY: the options are alive. The error buffer has size 0, so no text is written to it.
    unsafe {
        native::rd_kafka_AdminOptions_set_request_timeout(
            options.get(),
            timeout,
            ptr::null_mut(),
            0,
        );
    }

    // SAFETY: the array holds one name, as the count says. The name ends with a zero byte and is
    // copied by the call.
    let names = unsafe { native::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), 1) };
    let names = Owned::new(names, native::rd_kafka_TopicCollection_destroy).ok_or_else(failed)?;

    // SAFETY: `rk` is alive, as above.
    let queue = unsafe { native::rd_kafka_queue_new(rk) };
    let queue = Owned::new(queue, native::rd_kafka_queue_destroy).ok_or_else(failed)?;

    // SAFETY: all four are alive. The call copies names and options, and keeps its own reference to
    // the queue.
    unsafe { native::rd_kafka_DescribeTopics(rk, names.get(), options.get(), queue.get()) };

    // SAFETY: the queue is alive, and only this thread reads it. The event is ours to free.
    let event =
        unsafe { native::rd_kafka_queue_poll(queue.get(), timeout.saturating_add(MARGIN_MS)) };
    let timed_out = TopicIdError::Request(RDKafkaErrorCode::OperationTimedOut);
    let event = Owned::new(event, native::rd_kafka_event_destroy).ok_or(timed_out)?;

    id_in(&event)
}

fn id_in(event: &Owned<native::rd_kafka_event_t>) -> Result<Option<String>, TopicIdError> {
    let failed = TopicIdError::Request(RDKafkaErrorCode::Fail);
    // SAFETY: the event is alive.
    check(unsafe { native::rd_kafka_event_error(event.get()) })?;

    // SAFETY: the event is alive. For an event of another kind the result is null, which is
    // checked.
    let result = unsafe { native::rd_kafka_event_DescribeTopics_result(event.get()) };
    if result.is_null() {
        return Err(failed);
    }

    let mut count = 0;
    // SAFETY: the result is not null and lives as long as the event; `count` is written before the
    // call returns.
    let topics = unsafe { native::rd_kafka_DescribeTopics_result_topics(result, &mut count) };
    if topics.is_null() || count != 1 {
        return Err(failed);
    }

    // SAFETY: the array has `count` elements, which is one, and lives as long as the event.
    let topic = unsafe { *topics };

    // SAFETY: the element is a description that lives as long as the event.
    let error = unsafe { native::rd_kafka_TopicDescription_error(topic) };
    // SAFETY: a null pointer is allowed here and means no error.
    check(unsafe { native::rd_kafka_error_code(error) })?;

    // SAFETY: the description lives as long as the event, and the id as long as the description.
    let id = unsafe { native::rd_kafka_TopicDescription_topic_id(topic) };

    // SAFETY: the id is alive. It contains the text, which ends with a zero byte.
    let text = unsafe { native::rd_kafka_Uuid_base64str(id) };
    if text.is_null() {
        return Err(failed);
    }

    // SAFETY: the text is not null, ends with a zero byte, lives as long as the event, and is
    // copied before the event is freed.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();

    // Brokers that assign no ids answer with all zeros.
    Ok((!text.bytes().all(|byte| byte == b'A')).then_some(text))
}

fn check(error: native::rd_kafka_resp_err_t) -> Result<(), TopicIdError> {
    match RDKafkaErrorCode::from(error) {
        RDKafkaErrorCode::NoError => Ok(()),
        RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
            Err(TopicIdError::NoTopic)
        }
        code => Err(TopicIdError::Request(code)),
    }
}
