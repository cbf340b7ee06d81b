//! The id of a topic, which tells it from an earlier one of the same name.
//!
//! librdkafka has a call for it (`DescribeTopics`), rdkafka 0.39 has none. This crate makes that
//! one call, over the connections of a client that exists, and is the only one of the workspace
//! with `unsafe` in it.

use std::{
    ffi::{CStr, CString},
    ptr::{self, NonNull},
    time::Duration,
};

use rdkafka::{ClientContext, bindings as native, client::Client, error::RDKafkaErrorCode};

/// How much longer we wait for librdkafka than it waits for the broker.
const MARGIN_MS: i32 = 1_000;

/// Why a topic's id could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicIdError {
    /// There is no topic of this name.
    #[error("there is no such topic")]
    NoTopic,
    /// The request failed, or nobody has answered in time.
    #[error("the request for the topic's id failed: {0}")]
    Request(RDKafkaErrorCode),
}

/// A native object of ours, and the function that frees it.
struct Owned<T> {
    object: NonNull<T>,
    free: unsafe extern "C" fn(*mut T),
}

impl<T> Owned<T> {
    /// `None` for a null pointer. The caller hands over `object`, which `free` must be the function
    /// to free.
    fn new(object: *mut T, free: unsafe extern "C" fn(*mut T)) -> Option<Self> {
        Some(Self { object: NonNull::new(object)?, free })
    }

    fn get(&self) -> *mut T {
        self.object.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: `new` got the object together with its function, nobody else frees it, and this
        // runs once.
        unsafe { (self.free)(self.object.as_ptr()) }
    }
}

/// Asks for the id of `topic`, over the connections of `client`, as librdkafka prints it (22
/// characters of base64). `None` where the brokers give topics no ids. Blocks the thread for little
/// more than `timeout`.
///
/// # Errors
/// [`TopicIdError`].
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

    // SAFETY: `client` keeps `rk` alive for all of this function.
    let options = unsafe { native::rd_kafka_AdminOptions_new(rk, op) };
    let options = Owned::new(options, native::rd_kafka_AdminOptions_destroy).ok_or_else(failed)?;
    // SAFETY: the options are alive; without a buffer (its size is 0) no error text is written.
    unsafe {
        native::rd_kafka_AdminOptions_set_request_timeout(
            options.get(),
            timeout,
            ptr::null_mut(),
            0,
        );
    }
    // SAFETY: one name is said to be there and one is; it ends with a zero byte and is copied by
    // the call.
    let names = unsafe { native::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), 1) };
    let names = Owned::new(names, native::rd_kafka_TopicCollection_destroy).ok_or_else(failed)?;
    // SAFETY: `rk` is alive, as above.
    let queue = unsafe { native::rd_kafka_queue_new(rk) };
    let queue = Owned::new(queue, native::rd_kafka_queue_destroy).ok_or_else(failed)?;

    // SAFETY: all four are alive. The call copies names and options, and keeps a reference of its
    // own to the queue.
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
    // SAFETY: the event is alive; for one of another kind the answer is null, which is looked for.
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
    // SAFETY: a null pointer, which means no error, is allowed here.
    check(unsafe { native::rd_kafka_error_code(error) })?;
    // SAFETY: the description lives as long as the event, and its id as long as it.
    let id = unsafe { native::rd_kafka_TopicDescription_topic_id(topic) };
    // SAFETY: the id is alive. The text is kept inside of it, and ends with a zero byte.
    let text = unsafe { native::rd_kafka_Uuid_base64str(id) };
    if text.is_null() {
        return Err(failed);
    }
    // SAFETY: not null, ends with a zero byte, and lives as long as the event; it is copied before
    // that is freed.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // All zeros is what there is in an answer without ids.
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
